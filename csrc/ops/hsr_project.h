// hsr_project: the drafter's input projection, gather and concatenation fused into a skinny GEMM.
//   out[m, o] = sum_e weight[o, e] embed[token_ids[m], e] + sum_h weight[o, E + h] hidden[row_index[m], h] + bias[o]
// row_index -1 stands for a row of zeros. fp32 accumulation in one fixed order per (m, o).
#pragma once
#include "ops/skinny.h"

namespace sparrow {

struct HsrProjectParams {
  const int64_t* token_ids;                          // [M], in [0, V)
  const int32_t* row_index;                          // [M], in [-1, R)
  const void* embed;                                 // [V, E], dense rows
  const void* hidden;                                // [R, H], dense rows
  const void* weight;                                // [O, E + H], dense rows, the embedding's half first
  const void* bias;                                  // [O] or null
  void* out;                                         // [M, O], dense rows
  void* packed;                                      // scratch: packed_bytes(M, E + H) bytes, 64-byte aligned
  int64_t rows, embed_width, hidden_width, outputs;  // M (valid rows), E, H, O
  int64_t embed_stride, hidden_stride, weight_stride, out_stride;  // elements
  DType dtype;
};

// Stage 1, pack_items(M) items: gathers and packs the activations. Stage 2, one item = kSkinnyTile outputs of all rows.
// Both stages must run on the same instruction set: the packed form is the set's own.
SPARROW_CPU_KERNEL(hsr_pack_cpu, HsrProjectParams)
SPARROW_CPU_KERNEL(hsr_project_cpu, HsrProjectParams)

// More than kSkinnyRows rows are gathered and multiplied in chunks of this many.
constexpr int64_t kHsrChunk = 512;
// Bytes of scratch for M rows, with room to align it to 64 bytes. O is part of the signature for the CUDA kernel's
// sake.
constexpr int64_t hsr_project_workspace_bytes(int64_t rows, int64_t embed_width, int64_t hidden_width, int64_t) {
  return packed_bytes(rows < kHsrChunk ? rows : kHsrChunk, embed_width + hidden_width);
}

}  // namespace sparrow
