// What tree_attention and draft_attention share: the checks of cache, words and workspace, and the run.
#pragma once
#include <cmath>

#include "bindings/checks.h"
#include "ops/tree_attention.h"

namespace sparrow {

inline const int32_t* take_lengths(const char* op, const Tensor& t, const char* name, int64_t batch) {
  Arg{op, name, t}.dtype({ScalarType::Int}).dim(1).size(0, batch, "B").contiguous();
  return t.const_data_ptr<int32_t>();
}

// caches [B, Smax, K, D] of the dtype of `like`; fills p.k ... p.v_h, p.kv_heads.
inline void take_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache, const Arg& like,
                        TreeAttentionParams& p) {
  for (const Arg& a : {Arg{op, "k_cache", k_cache}, Arg{op, "v_cache", v_cache}}) {
    a.same_dtype(like).dim(4);
    a.size(0, p.batch, "B").size(1, k_cache.size(1), "Smax").size(2, k_cache.size(2), "K").size(3, p.dim, "D");
    a.last_dense();
  }
  p.kv_heads = k_cache.size(2);
  p.cache_rows = k_cache.size(1);
  if (p.kv_heads == 0 || p.heads % p.kv_heads != 0)
    refuse(op, "the ", p.heads, " query heads must be a multiple of the kv heads, got k_cache of shape ",
           shape_of(k_cache));
  p.k = k_cache.const_data_ptr();
  p.k_b = k_cache.stride(0);
  p.k_s = k_cache.stride(1);
  p.k_h = k_cache.stride(2);
  p.v = v_cache.const_data_ptr();
  p.v_b = v_cache.stride(0);
  p.v_s = v_cache.stride(1);
  p.v_h = v_cache.stride(2);
}

inline void check_head_dim(const char* op, int64_t dim) {
  check_that(dim >= 1 && dim <= kMaxHeadDim, op, "head_dim must lie in [1, ", kMaxHeadDim, "], got ", dim);
}

inline float take_scale(const char* op, double scale) {
  check_that(std::abs(scale) <= 3.4e38, op, "scale must be a finite float32, got ", scale);
  return static_cast<float>(scale);
}

// out [B, N, H, D], strided, written in place.
inline void take_out(const char* op, const Tensor& out, const Arg& like, TreeAttentionParams& p) {
  const Arg a{op, "out", out};
  a.same_dtype(like).dim(4).size(0, p.batch, "B").size(1, p.nodes, "N").size(2, p.heads, "H");
  a.size(3, p.dim, "D").last_dense();
  p.out = out.mutable_data_ptr();
  p.o_b = out.stride(0);
  p.o_n = out.stride(1);
  p.o_h = out.stride(2);
}

// Bytes [from, from + room of `splits` splits) of the workspace become partial and stats.
inline void take_workspace(const char* op, const Tensor& workspace, int64_t from, int64_t splits, int64_t alignment,
                           TreeAttentionParams& p) {
  const int64_t need = check_bytes(op, from + attention_workspace(p.batch, p.nodes, p.heads, p.dim, splits));
  char* bytes = take_bytes(op, workspace, need, alignment) + from;  // `from` is a multiple of 64
  p.partial = reinterpret_cast<float*>(bytes);
  p.stats = p.partial + product(p.batch, p.splits, p.nodes, p.heads, padded_dim(p.dim));
}

// Runs both kernels. Small problems stay on the calling thread.
inline void run_attention(const TreeAttentionParams& p) {
  const int64_t rows = p.nodes * (p.heads / p.kv_heads), tiles = attention_row_tiles(rows);
  const int64_t keys = p.split_keys < kSplitKeys ? p.split_keys : kSplitKeys;
  const int64_t item_cost = rows / tiles * keys * p.dim;  // multiply-adds of one product
  constexpr int64_t kThreadCost = int64_t{1} << 20;
  run_items(tree_attention_split_cpu, p, p.batch * p.kv_heads * p.splits * tiles,
            item_cost >= kThreadCost ? 1 : kThreadCost / item_cost);
  run_items(tree_attention_combine_cpu, p, p.batch * p.nodes * p.heads,
            1 + kThreadCost / 8 / (p.splits * padded_dim(p.dim)));
}

}  // namespace sparrow
