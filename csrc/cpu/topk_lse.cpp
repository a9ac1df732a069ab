#include "ops/topk_lse.h"

#include "cpu/topk.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int64_t kBlock = 512;

template <class T>
void chunks(const TopkLseParams& p, int64_t begin, int64_t end) {
  const int64_t k = p.parts.k;
  TopkState s;
  float floor = -kInf, y[kBlock];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item / p.parts.chunks, chunk = item % p.parts.chunks;
    const T* x = static_cast<const T*>(p.logits) + row / p.inner * p.outer_stride + row % p.inner * p.inner_stride;
    const int64_t stop = (chunk + 1) * kTopkChunk < p.vocab ? (chunk + 1) * kTopkChunk : p.vocab;
    // k entries of this row's earlier chunks are at least the floor and come first where equal.
    if (chunk == 0 || item == begin) floor = -kInf;
    topk_clear(s, k);
    const float* bias = bias_of(p.bias, row);
    for (int64_t i = chunk * kTopkChunk; i < stop; i += kBlock) {
      const int64_t n = stop - i < kBlock ? stop - i : kBlock;
      if (bias == nullptr) {
        topk_fold(s, k, floor, x + i, n, i);
      } else {
        add_bias(x + i, bias + i, n, y);
        topk_fold(s, k, floor, y, n, i);
      }
    }
    if (s.value[k - 1] > floor) floor = s.value[k - 1];
    topk_save(s, p.parts, item);
  }
}

// Missing entries: the lowest indices that are not in the list, all of them -inf or NaN.
void fill_missing(int64_t count, int64_t k, int32_t* index) {
  const int64_t listed = count;
  for (int32_t i = 0; count < k; ++i) {
    bool seen = false;
    for (int64_t j = 0; j < listed; ++j) seen |= index[j] == i;
    if (!seen) index[count++] = i;
  }
}

float log_probability(float x, float lse) { return x == -kInf ? -kInf : x == kInf ? 0.f : x - lse; }

}  // namespace

void topk_lse_cpu(const TopkLseParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return chunks<float>(p, begin, end);
  if (p.dtype == DType::bf16) return chunks<bf16_t>(p, begin, end);
  chunks<f16_t>(p, begin, end);
}

void topk_merge_cpu(const TopkMergeParams& p, int64_t begin, int64_t end) {
  const int64_t k = p.parts.k, chunks = p.parts.chunks;
  for (int64_t row = begin; row < end; ++row) {
    TopkState s;
    topk_clear(s, k);
    for (int64_t e = row * chunks; e < (row + 1) * chunks; ++e)
      s.max = p.parts.stat[e * 2] > s.max ? p.parts.stat[e * 2] : s.max;
    for (int64_t e = row * chunks; e < (row + 1) * chunks; ++e) {
      s.sum += p.parts.stat[e * 2 + 1] * exp_nonpositive(splat(p.parts.stat[e * 2] - s.max))[0];
      const float* value = p.parts.value + e * k;
      for (int64_t j = 0; j < k && value[j] > s.value[k - 1]; ++j)
        topk_insert(s.value, s.index, k, value[j], p.parts.index[e * k + j]);
    }
    const float lse = s.max == kInf || s.max == -kInf ? s.max : s.max + logf(s.sum);
    int64_t count = 0;
    while (count < k && s.value[count] > -kInf) ++count;
    fill_missing(count, k, s.index);
    for (int64_t j = 0; j < k; ++j) {
      p.logp[row * k + j] = log_probability(s.value[j], lse);
      p.ids[row * k + j] = p.id_map ? p.id_map[s.index[j]] : s.index[j];
    }
    p.lse[row] = lse;
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
