#include "ops/rope_append.h"

#include "cpu/rope.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

template <class T>
void query_head(const RopeAppendParams& p, int64_t b, int64_t h) {
  T* q = static_cast<T*>(p.q) + b * p.q_b + h * p.q_h;
  for (int64_t n = 0; n < p.nodes; ++n)
    rope_row(q + n * p.q_n, p.cos_sin + (b * p.nodes + n) * p.dim, p.dim, q + n * p.q_n);
}

template <class T>
void kv_head(const RopeAppendParams& p, int64_t b, int64_t h) {
  const T* k = static_cast<const T*>(p.k) + b * p.k_b + h * p.k_h;
  const T* v = static_cast<const T*>(p.v) + b * p.v_b + h * p.v_h;
  T* k_cache = static_cast<T*>(p.k_cache) + b * p.kc_b + h * p.kc_h;
  T* v_cache = static_cast<T*>(p.v_cache) + b * p.vc_b + h * p.vc_h;
  for (int64_t n = 0; n < p.nodes; ++n) {
    const int64_t slot = p.slots[b * p.nodes + n];
    if (slot < 0) continue;
    rope_row(k + n * p.k_n, p.cos_sin + (b * p.nodes + n) * p.dim, p.dim, k_cache + slot * p.kc_s);
    std::memcpy(v_cache + slot * p.vc_s, v + n * p.v_n, sizeof(T) * p.dim);
  }
}

template <class T>
void run(const RopeAppendParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / (p.heads + p.kv_heads), h = i % (p.heads + p.kv_heads);
    if (h < p.heads)
      query_head<T>(p, b, h);
    else
      kv_head<T>(p, b, h - p.heads);
  }
}

}  // namespace

void rope_append_cpu(const RopeAppendParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return run<float>(p, begin, end);
  if (p.dtype == DType::bf16) return run<bf16_t>(p, begin, end);
  run<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
