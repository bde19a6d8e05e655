#include "services/modifiers/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

#include "engine/core/status_macros.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr size_t kBlock = 1 << 20;

absl::Status WriteAll(int descriptor, const std::string& path, const char* data, size_t length) {
  while (length > 0) {
    const ssize_t written = ::write(descriptor, data, length);
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoError("writing", path);
    }
    data += written;
    length -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

// Closes a descriptor at the end of its block.
class Closer {
 public:
  explicit Closer(int descriptor) : descriptor_(descriptor) {}
  ~Closer() { ::close(descriptor_); }
  Closer(const Closer&) = delete;
  Closer& operator=(const Closer&) = delete;

 private:
  int descriptor_;
};

}  // namespace

absl::Status ErrnoError(const std::string& what, const std::string& path) {
  return absl::ErrnoToStatus(errno, Cat(what, " ", path));
}

File::File(std::string path, int descriptor, uint64_t bytes)
    : path_(std::move(path)), descriptor_(descriptor), bytes_(bytes) {}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(other.bytes_) {}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    path_ = std::move(other.path_);
    descriptor_ = std::exchange(other.descriptor_, -1);
    bytes_ = other.bytes_;
  }
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

absl::StatusOr<File> File::Open(const std::string& path, uint64_t max_bytes) {
  // Non-blocking: a named pipe must not hold the thread.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) {
    if (errno == ELOOP) {
      return absl::InvalidArgumentError(Cat(path, ": a symbolic link is not followed"));
    }
    return ErrnoError("opening", path);
  }
  File file(path, descriptor, 0);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) return ErrnoError("reading", path);
  if (!S_ISREG(status.st_mode)) return absl::InvalidArgumentError(Cat(path, ": no regular file"));
  file.bytes_ = static_cast<uint64_t>(status.st_size);
  if (file.bytes_ > max_bytes) {
    return absl::InvalidArgumentError(
        Cat(path, ": ", file.bytes_, " bytes, at most ", max_bytes, " are taken"));
  }
  return file;
}

absl::Status File::Read(uint64_t offset, size_t length, char* out) const {
  while (length > 0) {
    const ssize_t got = ::pread(descriptor_, out, length, static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return ErrnoError("reading", path_);
    }
    if (got == 0) return absl::DataLossError(Cat(path_, ": the file has become shorter"));
    out += got;
    offset += static_cast<uint64_t>(got);
    length -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> File::ReadAll() const {
  std::string content(bytes_, '\0');
  RETURN_IF_ERROR(Read(0, content.size(), content.data()));
  return content;
}

absl::Status CopyAndSync(const File& source, const std::string& target) {
  const int descriptor =
      ::open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (descriptor < 0) return ErrnoError("creating", target);
  const Closer closer(descriptor);
  std::vector<char> block(kBlock);
  for (uint64_t at = 0; at < source.bytes();) {
    const size_t length = static_cast<size_t>(std::min<uint64_t>(kBlock, source.bytes() - at));
    RETURN_IF_ERROR(source.Read(at, length, block.data()));
    RETURN_IF_ERROR(WriteAll(descriptor, target, block.data(), length));
    at += length;
  }
  if (::fsync(descriptor) != 0) return ErrnoError("syncing", target);
  return absl::OkStatus();
}

absl::Status WriteAtomically(const std::string& path, const std::string& content) {
  const std::string temporary = path + ".tmp";
  {
    const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
                                  S_IRUSR | S_IWUSR);
    if (descriptor < 0) return ErrnoError("creating", temporary);
    const Closer closer(descriptor);
    RETURN_IF_ERROR(WriteAll(descriptor, temporary, content.data(), content.size()));
    if (::fsync(descriptor) != 0) return ErrnoError("syncing", temporary);
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return ErrnoError("renaming", temporary);
  const size_t slash = path.rfind('/');
  return SyncFolder(slash == std::string::npos ? "." : path.substr(0, slash));
}

absl::Status SyncFolder(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoError("opening", path);
  const Closer closer(descriptor);
  if (::fsync(descriptor) != 0) return ErrnoError("syncing", path);
  return absl::OkStatus();
}

}  // namespace cogumi::services
