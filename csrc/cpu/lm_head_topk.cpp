#include "ops/lm_head_topk.h"

#include "cpu/skinny_gemm.h"
#include "cpu/topk.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int64_t kTile = 2 * kSkinnyTile;  // logits folded at a time
static_assert(kLmHeadChunk % kTile == 0, "a chunk is whole tiles");

template <class T>
void pack(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  const auto fill = [&](const PackedRow<T>& row, int64_t m) {
    const int64_t r = p.first + m;
    row.put(0, static_cast<const T*>(p.h) + r / p.inner * p.outer_stride + r % p.inner * p.inner_stride, p.width);
  };
  for (int64_t item = begin; item < end; ++item) pack_rows<T>(p.packed, p.rows, p.width, item, fill);
}

// y[m * kTile + j] = the logits of rows [v, v + n) of the vocabulary.
template <class T>
SPARROW_INLINE void logits(const LmHeadTopkParams& p, int64_t v, int64_t n, float* y) {
  for (int64_t j = 0; j < n; j += kSkinnyTile) {
    const SkinnyTile<T> what{static_cast<const T*>(p.weight) + (v + j) * p.weight_stride,
                             p.weight_stride,
                             n - j < kSkinnyTile ? n - j : kSkinnyTile,
                             static_cast<const typename Step<T>::X*>(p.packed),
                             p.rows,
                             p.width};
    skinny_gemm(what, y + j, kTile);
  }
}

template <class T>
void chunks(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  const int64_t k = p.parts.k;
  TopkState s[kSkinnyRows];
  float floor[kSkinnyRows];  // k entries of this call's earlier chunks are at least the floor and come first
  float y[kSkinnyRows * kTile];
  const float* bias[kSkinnyRows];
  for (int64_t m = 0; m < p.rows; ++m) {
    floor[m] = -kInf;
    bias[m] = bias_of(p.bias, p.first + m);
  }
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t stop = (chunk + 1) * kLmHeadChunk < p.vocab ? (chunk + 1) * kLmHeadChunk : p.vocab;
    for (int64_t m = 0; m < p.rows; ++m) topk_clear(s[m], k);
    for (int64_t v = chunk * kLmHeadChunk; v < stop; v += kTile) {
      const int64_t n = stop - v < kTile ? stop - v : kTile;
      logits<T>(p, v, n, y);
      for (int64_t m = 0; m < p.rows; ++m) {
        if (bias[m] != nullptr) add_bias(y + m * kTile, bias[m] + v, n, y + m * kTile);
        topk_fold(s[m], k, floor[m], y + m * kTile, n, v);
      }
    }
    for (int64_t m = 0; m < p.rows; ++m) {
      if (s[m].value[k - 1] > floor[m]) floor[m] = s[m].value[k - 1];
      topk_save(s[m], p.parts, m * p.parts.chunks + chunk);
    }
  }
}

}  // namespace

void lm_head_pack_cpu(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return pack<float>(p, begin, end);
  if (p.dtype == DType::bf16) return pack<bf16_t>(p, begin, end);
  pack<f16_t>(p, begin, end);
}

void lm_head_topk_cpu(const LmHeadTopkParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return chunks<float>(p, begin, end);
  if (p.dtype == DType::bf16) return chunks<bf16_t>(p, begin, end);
  chunks<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
