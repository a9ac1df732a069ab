#include "ops/draft_attention.h"

#include "cpu/rope.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

template <class T>
void append_row(const DraftAttentionParams& p, int64_t b, int64_t i) {
  const TreeAttentionParams& a = p.attention;
  const T* x = static_cast<const T*>(p.qkv) + b * p.qkv_b + i * p.qkv_t;
  const float* cos_sin = p.cos_sin + (b * a.nodes + i) * a.dim;
  T* roped = static_cast<T*>(p.roped) + (b * a.nodes + i) * a.heads * a.dim;
  for (int64_t h = 0; h < a.heads; ++h, x += a.dim, roped += a.dim) rope_row(x, cos_sin, a.dim, roped);
  const int64_t row = static_cast<int64_t>(a.lens[b]) + a.tree_start[b] + i;
  T* k = static_cast<T*>(p.k_cache) + b * a.k_b + row * a.k_s;
  T* v = static_cast<T*>(p.v_cache) + b * a.v_b + row * a.v_s;
  for (int64_t h = 0; h < a.kv_heads; ++h, x += a.dim) rope_row(x, cos_sin, a.dim, k + h * a.k_h);
  for (int64_t h = 0; h < a.kv_heads; ++h, x += a.dim) std::memcpy(v + h * a.v_h, x, sizeof(T) * a.dim);
}

template <class T>
void run(const DraftAttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.attention.nodes, i = item % p.attention.nodes;
    if (i < used_nodes(p.attention, b)) append_row<T>(p, b, i);
  }
}

}  // namespace

void draft_attention_append_cpu(const DraftAttentionParams& p, int64_t begin, int64_t end) {
  if (p.attention.dtype == DType::f32) return run<float>(p, begin, end);
  if (p.attention.dtype == DType::bf16) return run<bf16_t>(p, begin, end);
  run<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
