// File operations that survive a power cut, with errors that name the file.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace cogumi::services {

// Owns a descriptor.
class File {
 public:
  // A regular file, for reading; symbolic links are not followed. NOT_FOUND, INVALID_ARGUMENT (no
  // regular file, or more than `max_bytes`), or what errno says.
  static absl::StatusOr<File> Open(const std::string& path, uint64_t max_bytes);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }
  // Exactly `length` bytes from `offset`; DATA_LOSS when the file has become shorter.
  absl::Status Read(uint64_t offset, size_t length, char* out) const;
  absl::StatusOr<std::string> ReadAll() const;

 private:
  File(std::string path, int descriptor, uint64_t bytes);
  std::string path_;
  int descriptor_ = -1;
  uint64_t bytes_ = 0;
};

// Creates the file (which must not exist) with the source's bytes and syncs it.
absl::Status CopyAndSync(const File& source, const std::string& target);
// Replaces the file as a whole: temporary file, sync, rename, sync of the folder.
absl::Status WriteAtomically(const std::string& path, const std::string& content);
absl::Status SyncFolder(const std::string& path);
// "<what> <path>: <reason>" with errno's code.
absl::Status ErrnoError(const std::string& what, const std::string& path);

}  // namespace cogumi::services
