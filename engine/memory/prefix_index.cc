#include "engine/memory/prefix_index.h"

#include <algorithm>

namespace cogumi {

struct PrefixIndex::Node {
  Node* parent = nullptr;
  const PrefixKey* key = nullptr;  // of a root, which has no page
  const Page* tokens = nullptr;    // where the parent's map keeps them
  Children children;
  KvPage page;
  int32_t depth = 0;  // pages down to here
  int32_t pins = 0;   // of sequences, here or below
  uint64_t last_use = 0;
  bool resumable = false;  // a sequence may go on behind this page
};

size_t PrefixIndex::PageHash::operator()(const Page& page) const {
  uint64_t hash = page.generated;
  for (const TokenId token : page.tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 29;
  }
  return static_cast<size_t>(hash);
}

PrefixIndex::Page PrefixIndex::PageAt(std::span<const TokenId> tokens,
                                      std::span<const TokenRole> roles, int32_t index) {
  Page page;
  const size_t first = static_cast<size_t>(index) * kKvPageTokens;
  std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(first), kKvPageTokens,
              page.tokens.begin());
  for (size_t i = 0; i < kKvPageTokens; ++i) {
    page.generated |= uint64_t{roles[first + i] == TokenRole::kGenerated} << i;
  }
  return page;
}

PrefixIndex::PrefixIndex(KvCache* cache) : cache_(cache) {}

PrefixIndex::~PrefixIndex() {
  // Pins may be left; their owners do not come back.
  std::vector<Node*> nodes;
  for (const auto& [key, root] : roots_) nodes.push_back(root.get());
  while (!nodes.empty()) {
    Node* node = nodes.back();
    nodes.pop_back();
    cache_->Drop(node->page);
    for (const auto& [page, child] : node->children) nodes.push_back(child.get());
  }
}

void PrefixIndex::CountEvictable(const KvPage& page, int sign) {
  if (page.wide != kNoBlock) evictable_wide_ += sign;
  if (page.narrow != kNoBlock) evictable_narrow_ += sign;
}

std::vector<PrefixIndex::Node*> PrefixIndex::Path(const PrefixKey& key,
                                                  std::span<const TokenId> tokens,
                                                  std::span<const TokenRole> roles,
                                                  int32_t limit) const {
  std::vector<Node*> path;
  const auto root = roots_.find(key);
  if (root == roots_.end()) return path;
  const int32_t pages = std::min(limit, static_cast<int32_t>(tokens.size())) / kKvPageTokens;
  Node* node = root->second.get();
  while (node->depth < pages) {
    const auto child = node->children.find(PageAt(tokens, roles, node->depth));
    if (child == node->children.end()) break;
    node = child->second.get();
    path.push_back(node);
  }
  if (!narrows()) return path;
  std::vector<KvPage> found;
  found.reserve(path.size());
  for (const Node* n : path) found.push_back(n->page);
  while (!path.empty() &&
         !KvCache::CanResume(found, static_cast<int32_t>(path.size()) * kKvPageTokens,
                             cache_->shape().format)) {
    path.pop_back();
    found.pop_back();
  }
  return path;
}

int32_t PrefixIndex::Match(const PrefixKey& key, std::span<const TokenId> tokens,
                           std::span<const TokenRole> roles, int32_t limit) const {
  return static_cast<int32_t>(Path(key, tokens, roles, limit).size()) * kKvPageTokens;
}

void PrefixIndex::Take(const PrefixKey& key, std::span<const TokenId> tokens,
                       std::span<const TokenRole> roles, int32_t limit, KvSequence& sequence,
                       Pin& pin) {
  const std::vector<Node*> path = Path(key, tokens, roles, limit);
  const size_t last = path.size() - 1;
  std::vector<KvPage> pages;
  for (size_t j = 0; j < path.size(); ++j) {
    KvPage page = path[j]->page;
    // Behind the window only the narrow block is looked at.
    if (j >= 1 && j < last && page.narrow != kNoBlock) page.wide = kNoBlock;
    cache_->Retain(page);
    pages.push_back(page);
  }
  // Pinned before the old hold is given up, which may be the only one on the same pages.
  Pin taken;
  if (!path.empty()) taken.node = path.back();
  Hold(taken.node);
  Unpin(pin);
  cache_->Release(sequence);
  pin = taken;
  sequence.pages = std::move(pages);
  sequence.length = static_cast<int32_t>(path.size()) * kKvPageTokens;
}

PrefixIndex::Node* PrefixIndex::Root(const PrefixKey& key) {
  const auto [it, added] = roots_.try_emplace(key);
  if (added) {
    it->second = std::make_unique<Node>();
    it->second->key = &it->first;
  }
  return it->second.get();
}

void PrefixIndex::Hold(Node* node) {
  for (; node != nullptr && node->parent != nullptr; node = node->parent) {
    if (node->pins++ > 0) continue;
    CountEvictable(node->page, -1);
    leaves_.erase({node->last_use, node});
  }
}

PrefixIndex::Pin PrefixIndex::PinAlso(const Pin& pin, int32_t pages) {
  Pin also;
  also.node = pin.node;
  while (also.node != nullptr && also.node->depth > pages) also.node = also.node->parent;
  if (pages == 0) also.node = nullptr;  // not the root, which nothing keeps
  Hold(also.node);
  return also;
}

void PrefixIndex::Unpin(Pin& pin) {
  ++clock_;
  for (Node* node = pin.node; node != nullptr && node->parent != nullptr; node = node->parent) {
    node->last_use = clock_;
    if (--node->pins > 0) continue;
    CountEvictable(node->page, 1);
    if (node->children.empty()) leaves_.insert({node->last_use, node});
  }
  pin.node = nullptr;
}

void PrefixIndex::Share(Node& node, KvPage& own, bool keep_wide) {
  const auto share = [this](BlockId& here, BlockId& there, bool adopt, bool wide) {
    const auto page = [wide](BlockId id) {
      return wide ? KvPage{id, kNoBlock} : KvPage{kNoBlock, id};
    };
    if (there == kNoBlock || here == there) return;
    if (here == kNoBlock) {
      if (!adopt) return;
      here = there;
      cache_->Retain(page(here));
    } else {
      cache_->Drop(page(there));
      there = here;
      cache_->Retain(page(there));
    }
  };
  share(node.page.wide, own.wide, keep_wide, true);
  share(node.page.narrow, own.narrow, true, false);
}

void PrefixIndex::Insert(const PrefixKey& key, std::span<const TokenId> tokens,
                         std::span<const TokenRole> roles, bool resumable, KvSequence& sequence,
                         Pin& pin) {
  const int32_t full = sequence.length / kKvPageTokens;
  if (full == 0) return;
  Node* node = pin.node != nullptr ? pin.node : Root(key);
  while (node->depth < full) {
    KvPage& own = sequence.pages[static_cast<size_t>(node->depth)];
    const auto [it, added] = node->children.try_emplace(PageAt(tokens, roles, node->depth));
    if (added) {
      it->second = std::make_unique<Node>();
      it->second->parent = node;
      it->second->tokens = &it->first;
      it->second->depth = node->depth + 1;
      ++pages_;
      // Paths part here: the next one may go on from this place too.
      if (node->children.size() > 1) node->resumable = true;
    }
    Node& child = *it->second;
    if (child.pins++ == 0) {
      CountEvictable(child.page, -1);
      leaves_.erase({child.last_use, &child});
    }
    Share(child, own, /*keep_wide=*/true);
    node = &child;
  }
  pin.node = node;
  if (resumable) {
    node->resumable = true;
    // The same prompt again computes at least its last token: it resumes a page earlier.
    if (sequence.length % kKvPageTokens == 0) node->parent->resumable = true;
  }
  if (narrows()) Settle(node, full - (resumable ? 2 : 3), sequence);
}

void PrefixIndex::Settle(Node* node, int32_t last, KvSequence& sequence) {
  for (; node->parent != nullptr; node = node->parent) {
    const int32_t index = node->depth - 1;
    Share(*node, sequence.pages[static_cast<size_t>(index)], /*keep_wide=*/false);
    // The first page is always seen wide.
    if (index == 0 || index > last || node->resumable || node->page.narrow == kNoBlock ||
        node->page.wide == kNoBlock) {
      continue;
    }
    cache_->Drop({node->page.wide, kNoBlock});
    node->page.wide = kNoBlock;
  }
}

bool PrefixIndex::EvictOne() {
  if (leaves_.empty()) return false;
  Node* node = leaves_.begin()->second;
  leaves_.erase(leaves_.begin());
  CountEvictable(node->page, -1);
  cache_->Drop(node->page);
  --pages_;
  ++evictions_;
  Node* parent = node->parent;
  parent->children.erase(parent->children.find(*node->tokens));
  if (parent->parent == nullptr) {
    DropRootIfEmpty(parent);
  } else if (parent->children.empty() && parent->pins == 0) {
    leaves_.insert({parent->last_use, parent});
  }
  return true;
}

void PrefixIndex::DropRootIfEmpty(Node* root) {
  if (root->children.empty()) roots_.erase(roots_.find(*root->key));
}

}  // namespace cogumi
