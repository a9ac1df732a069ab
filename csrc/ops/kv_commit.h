// kv_commit: keeps the accepted rows of a verified tree, in place, for all layers in one call. With base =
// base_lens[b], for j < num_path[b], in every layer's keys and values,
//
//   kv[b, base + j] = kv[b, base + path[b, j]]
//   new_lens[b]     = base + num_path[b]
//
// Layout: each layer's keys and each layer's values are [B, S, K, D] with any strides but a dense D, the same for all;
// one item copies the rows of one (l, c, b, head).
// Invariant: a path is strictly increasing from path[0] >= 0, so path[j] >= j and every later source lies above row j.
// Copying in ascending j therefore reads each source before any write reaches it, at any path length. (A kernel that
// runs the rows of a path in parallel must load a chunk of 16 rows before it stores one of them.)
#pragma once
#include "ops/common.h"

namespace sparrow {

// Key and value tensors of one call of the kernel (64 layers); more take several calls. A kernel's parameters hold them
// by value: 1 KB of 4.
constexpr int64_t kKvTensors = 128;

struct KvCommitParams {
  char* kv[kKvTensors];                         // key and value tensors
  int64_t kv_batch, kv_row, kv_head, kv_bytes;  // strides in bytes, and the bytes of one row
  int64_t tensors, batch, heads;
  bool last;            // this call also writes new_lens
  int64_t rows;         // S
  const int32_t* path;  // [B, P]
  int64_t max_path;
  const int32_t* num_path;   // [B] in [0, P]
  const int32_t* base_lens;  // [B]
  int32_t* new_lens;         // [B], another tensor than base_lens: a replay starts from the same lengths
  int32_t* error;            // CUDA: the error word or null
};

// Items: one per (key or value tensor, sequence, head), then in the last call one per sequence (its new length).
inline int64_t kv_commit_items(const KvCommitParams& p) { return (p.tensors * p.heads + p.last) * p.batch; }

// Paths and lengths must have been checked.
SPARROW_CPU_KERNEL(kv_commit_cpu, KvCommitParams)

}  // namespace sparrow
