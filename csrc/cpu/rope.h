// Rotate-half rotary embedding of one head: y[d] = x[d] cos[d] - x[d + D/2] sin[d], y[d + D/2] = x[d + D/2] cos[d] +
// x[d] sin[d]. Two products and one sum, each rounded, as PyTorch's operators would: float32 results equal theirs bit
// for bit.
#pragma once
#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {

// cos_sin: [dim] = cos of the dim / 2 frequencies, then their sin. y may be x.
template <class T>
SPARROW_INLINE void rope_row(const T* x, const float* cos_sin, int64_t dim, T* y) {
  const int64_t half = dim / 2;
  int64_t d = 0;
  for (; d + kLanes <= half; d += kLanes) {
    const vf a = load(x + d), b = load(x + half + d), c = load(cos_sin + d), s = load(cos_sin + half + d);
    store(y + d, a * c - b * s);
    store(y + half + d, b * c + a * s);
  }
  for (; d < half; ++d) {
    const float a = to_f32(x[d]), b = to_f32(x[half + d]), c = cos_sin[d], s = cos_sin[half + d];
    y[d] = from_f32<T>(a * c - b * s);
    y[half + d] = from_f32<T>(b * c + a * s);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
