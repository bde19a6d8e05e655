// Writes the values of a model's tensors as raw float32, one tensor after the other in the file's
// order, for comparison by the Python tests.
//
// Usage: cogumi-dequantize MODEL > values
#include <cstdio>
#include <string>
#include <vector>

#include "engine/io/gguf.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL > values\n", argv[0]);
    return 2;
  }
  const auto file = cogumi::GgufFile::Open(argv[1]);
  if (!file.ok()) {
    std::fprintf(stderr, "%s\n", file.status().ToString().c_str());
    return 1;
  }
  for (const cogumi::GgufTensor& tensor : (*file)->tensors()) {
    std::vector<float> values(tensor.Elements());
    cogumi::Dequantize(tensor.type, tensor.data.data(), values.size(), values.data());
    if (std::fwrite(values.data(), sizeof(float), values.size(), stdout) != values.size()) {
      std::perror("writing the values");
      return 1;
    }
  }
  return 0;
}
