#include "engine/model/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace cogumi {

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

size_t Arena::Reserved(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  return (std::max<size_t>(bytes, 1) + kHuge - 1) / kHuge * kHuge;
}

absl::Status Arena::Reserve(size_t bytes) {
  bytes_ = Reserved(bytes);
  void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("weights: cannot take ", bytes_, " bytes: ", std::strerror(errno)));
  }
  base_ = static_cast<uint8_t*>(base);
  madvise(base_, bytes_, MADV_HUGEPAGE);  // advice: without it all works the same
  return absl::OkStatus();
}

uint8_t* Arena::Take(size_t bytes) {
  uint8_t* p = base_ + used_;
  used_ += Rounded(bytes);
  return p;
}

}  // namespace cogumi
