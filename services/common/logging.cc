#include "services/common/logging.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr size_t kMaxWaitingLines = 4096;
constexpr std::chrono::seconds kFlushTime(1);

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// RFC 3339 with milliseconds.
std::string FormatTime(double unix_seconds) {
  const auto whole = static_cast<std::time_t>(unix_seconds);
  const int millis = static_cast<int>((unix_seconds - static_cast<double>(whole)) * 1000);
  std::tm utc{};
  gmtime_r(&whole, &utc);
  char date[32];
  std::strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &utc);
  char text[48];
  std::snprintf(text, sizeof(text), "%s.%03dZ", date, millis);
  return text;
}

// Writes lines on its own thread. Never destroyed: lines may come from any thread until the end.
class LineWriter {
 public:
  static LineWriter& Get() {
    static LineWriter* const writer = new LineWriter;
    return *writer;
  }

  void Add(std::string line) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (lines_.size() >= kMaxWaitingLines) {
      ++lost_;
      return;
    }
    lines_.push_back(std::move(line));
    if (!started_) {
      started_ = true;
      std::thread([this] { Loop(); }).detach();
    }
    wake_.notify_one();
  }

  void Flush() {
    std::unique_lock<std::mutex> lock(mutex_);
    empty_.wait_for(lock, kFlushTime, [this] { return lines_.empty() && !writing_; });
  }

 private:
  void Loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return !lines_.empty(); });
      std::string batch;
      while (!lines_.empty()) {
        batch += lines_.front();
        lines_.pop_front();
      }
      if (lost_ > 0) {
        batch += FormatTime(UnixSeconds()) + " log: " + std::to_string(lost_) + " lines lost\n";
        lost_ = 0;
      }
      writing_ = true;
      lock.unlock();
      Write(batch);
      lock.lock();
      writing_ = false;
      empty_.notify_all();
    }
  }

  static void Write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        return;  // no one reads the log; serving goes on
      }
      text.remove_prefix(static_cast<size_t>(written));
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable empty_;
  std::deque<std::string> lines_;
  uint64_t lost_ = 0;
  bool started_ = false;
  bool writing_ = false;
};

void AppendNumber(std::string& line, const char* key, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), ",\"%s\":%.6f", key, value);
  line += text;
}

}  // namespace

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  for (const char c : ToValidUtf8(text)) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          char escaped[8];
          std::snprintf(escaped, sizeof(escaped), "\\u%04x", static_cast<unsigned>(c));
          out += escaped;
        } else {
          out += c;
        }
    }
  }
  out += '"';
  return out;
}

std::string FormatRequestLog(const RequestLogEntry& entry, double unix_seconds) {
  std::string line = "{\"time\":\"" + FormatTime(unix_seconds) + "\"";
  const auto add = [&line](const char* key, std::string_view value) {
    line += ",\"";
    line += key;
    line += "\":" + JsonString(value);
  };
  add("service", entry.service);
  add("method", entry.method);
  add("request_id", entry.request_id);
  add("tenant", entry.tenant);
  add("status", entry.status);
  if (!entry.reason.empty()) add("reason", entry.reason);
  if (entry.prompt_tokens >= 0) {
    line += ",\"prompt_tokens\":" + std::to_string(entry.prompt_tokens);
  }
  if (entry.completion_tokens >= 0) {
    line += ",\"completion_tokens\":" + std::to_string(entry.completion_tokens);
  }
  AppendNumber(line, "seconds", entry.seconds);
  if (entry.queue_seconds >= 0) AppendNumber(line, "queue_seconds", entry.queue_seconds);
  if (entry.first_token_seconds >= 0) {
    AppendNumber(line, "first_token_seconds", entry.first_token_seconds);
  }
  line += '}';
  return line;
}

void LogRequest(const RequestLogEntry& entry) {
  LineWriter::Get().Add(FormatRequestLog(entry, UnixSeconds()) + "\n");
}

void LogLine(std::string_view service, std::string_view message) {
  std::string line = FormatTime(UnixSeconds()) + " " + std::string(service) + ": ";
  // One event, one line.
  for (const char c : ToValidUtf8(message)) line += c == '\n' || c == '\r' ? ' ' : c;
  LineWriter::Get().Add(line + "\n");
}

void FlushLog() { LineWriter::Get().Flush(); }

}  // namespace cogumi::services
