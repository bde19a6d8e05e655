// SHA-256 (FIPS 180-4) for digests of models, templates and adapters; OpenSSL's implementation.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace cogumi {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view bytes);
  // Lower-case hex; the object is spent afterwards.
  std::string Finish();

  static std::string Hex(std::string_view bytes);

 private:
  void* context_;
};

}  // namespace cogumi
