// The running (maximum, sum of exponentials, top-k) of a stretch of logits; shared by topk_lse and lm_head_topk.
// The maximum and the sum are folded in block by block, in order: their bits depend on where the blocks begin only.
// The top-k is a selection: exact whatever the order, which is what lets a caller pass a floor it has seen elsewhere.
#pragma once
#include "cpu/vec.h"
#include "ops/topk_lse.h"

namespace sparrow {
namespace SPARROW_ISA {

struct TopkState {
  float max, sum;
  float value[kTopkMax];    // descending; -inf = unused
  int32_t index[kTopkMax];  // ascending where values are equal
};

constexpr float kInf = __builtin_huge_valf();

SPARROW_INLINE void topk_clear(TopkState& s, int64_t k) {
  s.max = -kInf;
  s.sum = 0.f;
  for (int64_t j = 0; j < k; ++j) {
    s.value[j] = -kInf;
    s.index[j] = 0;
  }
}

// v > value[k - 1], and its index is larger than any in the list.
SPARROW_INLINE void topk_insert(float* value, int32_t* index, int64_t k, float v, int32_t i) {
  int64_t j = k - 1;
  for (; j > 0 && value[j - 1] < v; --j) {
    value[j] = value[j - 1];
    index[j] = index[j - 1];
  }
  value[j] = v;
  index[j] = i;
}

// e^x for x <= 0; 0 for NaN, too.
SPARROW_INLINE vf exp_nonpositive(vf x) { return exp(max(x, splat(-100.f))); }

SPARROW_INLINE uint32_t greater_lanes(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
#else
  const vi gt = a > b;
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= gt[i] ? 1u << i : 0u;
  return mask;
#endif
}

// The n <= kLanes logits at x, the missing lanes -inf.
template <class T>
SPARROW_INLINE vf load_logits(const T* x, int64_t n) {
  return n >= kLanes ? load(x) : load_n(x, static_cast<int>(n), -kInf);
}

template <class T>
SPARROW_INLINE void topk_scan(TopkState& s, int64_t k, float floor, const T* x, int64_t n, int64_t first) {
  float bar = s.value[k - 1] > floor ? s.value[k - 1] : floor;
  for (int64_t i = 0; i < n; i += kLanes) {
    uint32_t above = greater_lanes(load_logits(x + i, n - i), splat(bar));
    for (; above; above &= above - 1) {
      const int lane = __builtin_ctz(above);
      const float v = to_f32(x[i + lane]);
      if (!(v > bar)) continue;
      topk_insert(s.value, s.index, k, v, static_cast<int32_t>(first + i + lane));
      bar = s.value[k - 1] > floor ? s.value[k - 1] : floor;
    }
  }
}

// Folds in x[0, n), whose first element has index `first`. Entries not above `floor` need not be kept in the top-k.
template <class T>
SPARROW_INLINE void topk_fold(TopkState& s, int64_t k, float floor, const T* x, int64_t n, int64_t first) {
  vf high = splat(-kInf);
  for (int64_t i = 0; i < n; i += kLanes) high = max(load_logits(x + i, n - i), high);  // NaN: high stays
  const float block_max = reduce_max(high);
  if (block_max > s.max) {
    const vf scale = exp_nonpositive(splat(s.max - block_max));
    s.sum *= scale[0];
    s.max = block_max;
  }
  vf sum{};
  for (int64_t i = 0; i < n; i += kLanes) sum += exp_nonpositive(load_logits(x + i, n - i) - splat(s.max));
  s.sum += reduce_add(sum);
  if (block_max > s.value[k - 1] && block_max > floor) topk_scan(s, k, floor, x, n, first);
}

// What is added to row r of a call; null = nothing.
SPARROW_INLINE const float* bias_of(const LogitBias& b, int64_t r) {
  return b.data == nullptr ? nullptr : b.data + (b.first + r) / b.inner * b.stride;
}
// y[i] = x[i] + bias[i], i < n, in float32.
template <class T>
SPARROW_INLINE void add_bias(const T* x, const float* bias, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) + load(bias + i));
  for (; i < n; ++i) y[i] = to_f32(x[i]) + bias[i];
}

SPARROW_INLINE void topk_save(const TopkState& s, const TopkPartials& parts, int64_t entry) {
  parts.stat[entry * 2] = s.max;
  parts.stat[entry * 2 + 1] = s.sum;
  std::memcpy(parts.value + entry * parts.k, s.value, parts.k * sizeof(float));
  std::memcpy(parts.index + entry * parts.k, s.index, parts.k * sizeof(int32_t));
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
