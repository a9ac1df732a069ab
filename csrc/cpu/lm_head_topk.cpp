#include "ops/lm_head_topk.h"

#include "cpu/skinny_gemm.h"
#include "cpu/topk.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int64_t kTile = 64;

template <class T>
void pack_rows(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  const int64_t ld = packed_width(p.width);
  for (int64_t m = begin; m < end; ++m) {
    auto* x = static_cast<typename Dot<T>::X*>(p.packed) + m * ld;
    pack<T>(x, static_cast<const T*>(p.h) + m / p.inner * p.outer_stride + m % p.inner * p.inner_stride, p.width);
    pack_zeros(x + p.width, ld - p.width);
  }
}

template <class T>
void chunks(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  const auto* x = static_cast<const typename Dot<T>::X*>(p.packed);
  const int64_t k = p.parts.k;
  TopkState s[kSkinnyRows];
  float floor[kSkinnyRows];  // k entries of this call's earlier chunks are at least the floor and come first
  float y[kSkinnyRows * kTile];
  for (int64_t m = 0; m < p.rows; ++m) floor[m] = -kInf;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t stop = (chunk + 1) * kLmHeadChunk < p.vocab ? (chunk + 1) * kLmHeadChunk : p.vocab;
    for (int64_t m = 0; m < p.rows; ++m) topk_clear(s[m], k);
    for (int64_t v = chunk * kLmHeadChunk; v < stop; v += kTile) {
      const int64_t n = stop - v < kTile ? stop - v : kTile;
      skinny_gemm<T>(static_cast<const T*>(p.weight) + v * p.weight_stride, p.weight_stride, n, x, p.rows, p.width, y,
                     kTile);
      for (int64_t m = 0; m < p.rows; ++m) topk_fold(s[m], k, floor[m], y + m * kTile, n, v);
    }
    for (int64_t m = 0; m < p.rows; ++m) {
      if (s[m].value[k - 1] > floor[m]) floor[m] = s[m].value[k - 1];
      topk_save(s[m], p.parts, m * p.parts.chunks + chunk);
    }
  }
}

}  // namespace

void lm_head_pack_cpu(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return pack_rows<float>(p, begin, end);
  if (p.dtype == DType::bf16) return pack_rows<bf16_t>(p, begin, end);
  pack_rows<f16_t>(p, begin, end);
}

void lm_head_topk_cpu(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return chunks<float>(p, begin, end);
  if (p.dtype == DType::bf16) return chunks<bf16_t>(p, begin, end);
  chunks<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
