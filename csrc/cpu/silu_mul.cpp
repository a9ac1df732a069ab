#include "ops/silu_mul.h"

#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

// The exponent is never positive, so nothing overflows on the way.
SPARROW_INLINE vf silu(vf g) {
  const vf e = exp(min(g, -g)), one = splat(1.f);
  return g * select(g < vf{}, e, one) / (one + e);
}

template <class T>
SPARROW_INLINE vf product(vf g, vf u) {
  return rounded<T>(silu(g)) * u;
}

template <class T>
SPARROW_INLINE void put(T* out, vf g, vf u) {
  store(out, product<T>(g, u));
}
template <>
inline __attribute__((always_inline)) void put<bf16_t>(bf16_t* out, vf g, vf u) {
  const vh h = narrowed(nearest_bf16(upper_half(nearest_bf16(silu(g))) * u) >> 16);
  std::memcpy(out, &h, sizeof h);
}

template <class T>
void run(const SiluMulParams& p, int64_t begin, int64_t end) {
  const int64_t pieces = silu_pieces(p.width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t m = item / pieces, from = item % pieces * kSiluPiece;
    const int64_t to = from + kSiluPiece < p.width ? from + kSiluPiece : p.width;
    const T *gate = static_cast<const T*>(p.gate) + m * p.gate_stride,
            *up = static_cast<const T*>(p.up) + m * p.up_stride;
    T* out = static_cast<T*>(p.out) + m * p.width;
    int64_t i = from;
    for (; i + kLanes <= to; i += kLanes) put(out + i, load(gate + i), load(up + i));
    const int left = static_cast<int>(to - i);
    store_n(out + i, product<T>(load_n(gate + i, left), load_n(up + i, left)), left);
  }
}

}  // namespace

void silu_mul_cpu(const SiluMulParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return run<float>(p, begin, end);
  if (p.dtype == DType::bf16) return run<bf16_t>(p, begin, end);
  run<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
