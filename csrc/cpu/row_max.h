// The maximum of a row of logits, found by blocks of 64: what argmax_rows returns and sample_rows starts from.
#pragma once
#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {

constexpr int64_t kBlock = 64;
constexpr int kBlockVecs = kBlock / kLanes;

struct RowMax {
  float value;        // the largest number; -inf where there is none
  int64_t index;      // the first index that holds it; 0 where there is none
  int64_t first_nan;  // -1 where there is none
  int64_t argmax() const { return first_nan >= 0 ? first_nan : index; }
};

SPARROW_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

// The 64 logits from x[begin] on; beyond the row's end: -inf.
template <class T>
SPARROW_INLINE void load_block(const T* x, int64_t begin, int64_t vocab, vf (&block)[kBlockVecs]) {
  const float inf = __builtin_inff();
  for (int j = 0; j < kBlockVecs; ++j) {
    const int64_t at = begin + j * kLanes, left = vocab - at;
    block[j] = left >= kLanes ? load(x + at) : load_n(x + at, left > 0 ? static_cast<int>(left) : 0, -inf);
  }
}

// block_max (where not null) receives each block's largest number, NaN left out.
template <class T>
SPARROW_INLINE RowMax row_max(const T* x, int64_t vocab, float* block_max) {
  const float inf = __builtin_inff();
  RowMax best{-inf, 0, -1};
  int64_t best_block = 0;
  bool found = false;
  vi nan{};
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    vf block[kBlockVecs], top = splat(-inf);
    load_block(x, begin, vocab, block);
    for (int j = 0; j < kBlockVecs; ++j) {
      nan |= block[j] != block[j];
      top = max(block[j], top);  // keeps top where block[j] is NaN
    }
    if (block_max != nullptr) block_max[begin / kBlock] = reduce_max(top);
    if (any(top > splat(best.value))) {
      best.value = block_max != nullptr ? block_max[begin / kBlock] : reduce_max(top);
      best_block = begin;
      found = true;
    }
  }
  if (found) {
    best.index = best_block;
    while (to_f32(x[best.index]) != best.value) ++best.index;
  }
  if (any(nan)) {
    best.first_nan = 0;
    while (to_f32(x[best.first_nan]) == to_f32(x[best.first_nan])) ++best.first_nan;
  }
  return best;
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
