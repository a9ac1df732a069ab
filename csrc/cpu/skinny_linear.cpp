#include "ops/skinny_linear.h"

#include "cpu/skinny_gemm.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

template <class T>
void pack(const SkinnyLinearParams& p, int64_t begin, int64_t end) {
  const auto fill = [&](const PackedRow<T>& row, int64_t m) {
    row.put(0, static_cast<const T*>(p.x) + m * p.x_stride, p.width);
  };
  for (int64_t item = begin; item < end; ++item) pack_rows<T>(p.packed, p.rows, p.width, item, fill);
}

// out = T(y + bias): one rounding to T.
template <class T>
SPARROW_INLINE void finish(T* out, const float* y, const T* bias, int64_t n) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(out + j, bias ? load(y + j) + load(bias + j) : load(y + j));
  for (; j < n; ++j) out[j] = from_f32<T>(bias ? y[j] + to_f32(bias[j]) : y[j]);
}

template <class T>
void multiply(const SkinnyLinearParams& p, int64_t begin, int64_t end) {
  float y[kSkinnyRows * kSkinnyTile];
  for (int64_t item = begin; item < end; ++item) {
    const OutputTile tile = output_tile(p, item, kSkinnyTile);
    const SkinnyPart& part = p.part[tile.part];
    const int64_t o = tile.first, n = part.outputs - o < kSkinnyTile ? part.outputs - o : kSkinnyTile;
    const T* bias = static_cast<const T*>(part.bias);
    const SkinnyTile<T> what{static_cast<const T*>(part.weight) + o * part.weight_stride,
                             part.weight_stride,
                             n,
                             static_cast<const typename Step<T>::X*>(p.packed),
                             p.rows,
                             p.width};
    skinny_gemm(what, y, kSkinnyTile);
    for (int64_t m = 0; m < p.rows; ++m)
      finish(static_cast<T*>(part.out) + m * part.out_stride + o, y + m * kSkinnyTile, bias ? bias + o : nullptr, n);
  }
}

}  // namespace

void skinny_pack_cpu(const SkinnyLinearParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return pack<float>(p, begin, end);
  if (p.dtype == DType::bf16) return pack<bf16_t>(p, begin, end);
  pack<f16_t>(p, begin, end);
}

void skinny_linear_cpu(const SkinnyLinearParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return multiply<float>(p, begin, end);
  if (p.dtype == DType::bf16) return multiply<bf16_t>(p, begin, end);
  multiply<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
