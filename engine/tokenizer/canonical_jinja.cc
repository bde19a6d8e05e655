#include "engine/tokenizer/canonical_jinja.h"

#include <algorithm>
#include <cctype>
#include <utility>

namespace cogumi {
namespace {

// Characters of a literal that mean something to the canonical form, and their letters.
constexpr std::string_view kSpecial = "'{}+\\";
constexpr std::string_view kSpecialLetters = "qocp\\";

constexpr std::string_view kWhiteSpace = " \t\r\n";

bool IsSpace(char c) { return kWhiteSpace.find(c) != std::string_view::npos; }
bool IsWord(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

void AppendEncoded(char c, std::string* out) {
  if (const size_t at = kSpecial.find(c); at != std::string_view::npos) {
    out->push_back('\\');
    c = kSpecialLetters[at];
  }
  out->push_back(c);
}

void ReplaceAll(std::string_view from, std::string_view to, std::string* text) {
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, at)) {
    text->replace(at, from.size(), to);
    at += to.size();
  }
}

class Canonicaliser {
 public:
  explicit Canonicaliser(std::string_view source) : rest_(source) {
    // Jinja drops the line break that ends a file.
    if (rest_.ends_with('\n')) rest_.remove_suffix(1);
  }

  std::string Run() {
    while (!rest_.empty()) {
      const size_t open = FindTag();
      Text(rest_.substr(0, open), rest_.substr(std::min(open, rest_.size())));
      if (open == std::string_view::npos) break;
      rest_.remove_prefix(open);
      Tag();
    }
    JoinLiterals();
    ReplaceAll("['role']", ".role", &out_);
    ReplaceAll("['content']", ".content", &out_);
    return std::move(out_);
  }

 private:
  size_t FindTag() const {
    for (size_t at = rest_.find('{'); at != std::string_view::npos; at = rest_.find('{', at + 1)) {
      if (at + 1 < rest_.size() && std::string_view("{%#").find(rest_[at + 1]) != rest_.npos) {
        return at;
      }
    }
    return std::string_view::npos;
  }

  // Text up to `tag`, which begins the rest of the template or is empty.
  void Text(std::string_view text, std::string_view tag) {
    if (strip_left_) {
      text.remove_prefix(std::min(text.find_first_not_of(kWhiteSpace), text.size()));
    } else if (after_block_ && text.starts_with('\n')) {
      text.remove_prefix(1);
    }
    if (tag.size() > 2 && tag[2] == '-') {
      text = text.substr(0, text.find_last_not_of(kWhiteSpace) + 1);
    } else if (tag.size() > 2 && tag[1] != '{' && tag[2] != '+') {
      // A block alone on its line so far loses its indentation.
      const size_t last = text.find_last_not_of(" \t");
      if (last == std::string_view::npos ? at_line_start_ : text[last] == '\n') {
        text = text.substr(0, last + 1);
      }
    }
    if (text.empty()) return;
    std::string literal = "'";
    for (const char c : text) AppendEncoded(c, &literal);
    Output(literal + "'", /*sum=*/true);
  }

  // Takes the tag that `rest_` begins with.
  void Tag() {
    const char kind = rest_[1];
    rest_.remove_prefix(2);
    if (!rest_.empty() && (rest_[0] == '-' || rest_[0] == '+')) rest_.remove_prefix(1);
    std::string inner;
    bool sum = true;
    char last = ' ';  // what the tag ends with: '-' strips what follows
    if (kind == '#') {
      const size_t end = rest_.find("#}");
      if (end != std::string_view::npos && end > 0) last = rest_[end - 1];
      rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 2);
    } else {
      last = Inner(kind == '{' ? "}}" : "%}", &inner, &sum);
    }
    strip_left_ = last == '-';
    after_block_ = kind != '{' && last != '+';
    at_line_start_ = after_block_ && rest_.starts_with('\n');
    if (kind == '{') Output(inner, sum);
    if (kind == '%') {
      out_ += "{%" + inner + "%}";
      open_output_ = false;
    }
  }

  // Reads to the end of a tag. *sum: it is literals and plain names with filters, added up.
  char Inner(std::string_view end, std::string* inner, bool* sum) {
    bool gap = false;
    while (!rest_.empty()) {
      const char c = rest_[0];
      if (rest_.starts_with(end)) {
        rest_.remove_prefix(end.size());
        return ' ';
      }
      if ((c == '-' || c == '+') && rest_.substr(1).starts_with(end)) {
        rest_.remove_prefix(1 + end.size());
        return c;
      }
      if (c == '\'' || c == '"') {
        if (!inner->empty() && IsWord(inner->back())) *sum = false;
        Literal(inner);
        gap = false;
        continue;
      }
      rest_.remove_prefix(1);
      if (IsSpace(c)) {
        gap = true;
        continue;
      }
      if (IsWord(c) && !inner->empty()) {
        const bool next_word = gap && IsWord(inner->back());
        if (next_word || inner->back() == '\'') *sum = false;
        if (next_word) inner->push_back(' ');
      }
      gap = false;
      if (!IsWord(c) && std::string_view(".|+[]").find(c) == std::string_view::npos) *sum = false;
      inner->push_back(c);
    }
    return ' ';
  }

  // Reads the literal that `rest_` begins with.
  void Literal(std::string* inner) {
    const char quote = rest_[0];
    rest_.remove_prefix(1);
    inner->push_back('\'');
    while (!rest_.empty() && rest_[0] != quote) {
      char c = rest_[0];
      rest_.remove_prefix(1);
      if (c == '\\' && !rest_.empty()) {
        c = rest_[0] == 'n' ? '\n' : rest_[0] == 't' ? '\t' : rest_[0];
        rest_.remove_prefix(1);
      }
      AppendEncoded(c, inner);
    }
    if (!rest_.empty()) rest_.remove_prefix(1);
    inner->push_back('\'');
  }

  // Sums that follow each other are one output; anything else stands for itself, so that it does
  // not take in its neighbours.
  void Output(std::string_view inner, bool sum) {
    if (sum && open_output_) {
      out_.resize(out_.size() - 2);
      out_.append("+").append(inner).append("}}");
    } else {
      out_.append("{{").append(inner).append("}}");
    }
    open_output_ = sum;
  }

  // 'a'+'b' -> 'ab', unless a filter or an index belongs to the second alone.
  void JoinLiterals() {
    constexpr std::string_view kBetween = "'+'";
    for (size_t at = out_.find(kBetween); at != std::string::npos; at = out_.find(kBetween, at)) {
      const size_t end = out_.find('\'', at + kBetween.size());
      const char next = end + 1 < out_.size() ? out_[end + 1] : ' ';
      const bool applied = std::string_view("|.[(").find(next) != std::string_view::npos;
      if (end == std::string::npos || applied) {
        at += kBetween.size();
      } else {
        out_.erase(at, kBetween.size());
      }
    }
  }

  std::string_view rest_;
  std::string out_;
  bool strip_left_ = false;
  bool after_block_ = false;
  bool at_line_start_ = true;  // nothing but a line break stands before the text
  bool open_output_ = false;   // out_ ends in an output that the next sum joins
};

}  // namespace

std::string CanonicalJinja(std::string_view source) { return Canonicaliser(source).Run(); }

std::string LiteralText(std::string_view canonical) {
  std::string text;
  for (size_t i = 0; i < canonical.size(); ++i) {
    if (canonical[i] != '\\' || i + 1 == canonical.size()) {
      text.push_back(canonical[i]);
      continue;
    }
    ++i;
    const size_t at = kSpecialLetters.find(canonical[i]);
    text.push_back(at == std::string_view::npos ? canonical[i] : kSpecial[at]);
  }
  return text;
}

}  // namespace cogumi
