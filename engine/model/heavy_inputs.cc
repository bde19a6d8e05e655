#include "engine/model/heavy_inputs.h"

#include <algorithm>
#include <numeric>

#include "engine/kernels/packed_matrix.h"

namespace cogumi {

std::vector<int32_t> HeavyInputs(const GgufTensor& norm, const GgufTensor& down) {
  const size_t width = norm.Elements();
  std::vector<float> weights(width);
  Dequantize(norm.type, norm.data.data(), width, weights.data());
  const size_t row_bytes = down.data.size() / width;
  std::vector<float> row(down.Elements() / width);
  std::vector<double> energy(width);
  for (size_t i = 0; i < width; ++i) {
    Dequantize(down.type, down.data.data() + i * row_bytes, row.size(), row.data());
    double squares = 0;
    for (const float v : row) squares += static_cast<double>(v) * static_cast<double>(v);
    const double product = static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
    // What is not a number counts as nothing: the order must be one.
    if (product * squares > 0) energy[i] = product * squares;
  }
  std::vector<int32_t> order(width);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&energy](int32_t a, int32_t b) {
    return energy[static_cast<size_t>(a)] > energy[static_cast<size_t>(b)];
  });
  order.resize(kHeavyInputs);
  return order;
}

}  // namespace cogumi
