#include "ops/hsr_project.h"

#include "cpu/skinny_gemm.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

template <class T>
void pack_rows(const HsrProjectParams& p, int64_t begin, int64_t end) {
  const int64_t width = p.embed_width + p.hidden_width, ld = packed_width(width);
  for (int64_t m = begin; m < end; ++m) {
    auto* x = static_cast<typename Dot<T>::X*>(p.packed) + m * ld;
    pack<T>(x, static_cast<const T*>(p.embed) + p.token_ids[m] * p.embed_stride, p.embed_width);
    const int64_t row = p.row_index[m];
    if (row >= 0)
      pack<T>(x + p.embed_width, static_cast<const T*>(p.hidden) + row * p.hidden_stride, p.hidden_width);
    else
      pack_zeros(x + p.embed_width, p.hidden_width);
    pack_zeros(x + width, ld - width);
  }
}

// out = T(y + bias): one rounding to T.
template <class T>
SPARROW_INLINE void finish(T* out, const float* y, const T* bias, int64_t n) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(out + j, bias ? load(y + j) + load(bias + j) : load(y + j));
  for (; j < n; ++j) out[j] = from_f32<T>(bias ? y[j] + to_f32(bias[j]) : y[j]);
}

template <class T>
void project(const HsrProjectParams& p, int64_t begin, int64_t end) {
  const auto* x = static_cast<const typename Dot<T>::X*>(p.packed);
  const T* bias = static_cast<const T*>(p.bias);
  float y[kSkinnyRows * kHsrTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t o = tile * kHsrTile, n = p.outputs - o < kHsrTile ? p.outputs - o : kHsrTile;
    skinny_gemm<T>(static_cast<const T*>(p.weight) + o * p.weight_stride, p.weight_stride, n, x, p.rows,
                   p.embed_width + p.hidden_width, y, kHsrTile);
    for (int64_t m = 0; m < p.rows; ++m)
      finish(static_cast<T*>(p.out) + m * p.out_stride + o, y + m * kHsrTile, bias ? bias + o : nullptr, n);
  }
}

}  // namespace

void hsr_pack_cpu(const HsrProjectParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return pack_rows<float>(p, begin, end);
  if (p.dtype == DType::bf16) return pack_rows<bf16_t>(p, begin, end);
  pack_rows<f16_t>(p, begin, end);
}

void hsr_project_cpu(const HsrProjectParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return project<float>(p, begin, end);
  if (p.dtype == DType::bf16) return project<bf16_t>(p, begin, end);
  project<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
