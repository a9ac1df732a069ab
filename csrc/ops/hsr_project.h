// hsr_project: the drafter's input projection, gather and concatenation fused into a skinny GEMM.
//   out[m, o] = sum_e weight[o, e] embed[token_ids[m], e] + sum_h weight[o, E + h] hidden[row_index[m], h] + bias[o]
// row_index -1 stands for a row of zeros. fp32 accumulation in one fixed order per (m, o).
#pragma once
#include "ops/skinny_linear.h"

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
  // The CUDA kernels' own: they take `rows` as an upper bound and look at the count and the indices themselves;
  // rows from num_rows on become zero.
  int64_t vocab, hidden_rows;  // V, R
  const int32_t* num_rows;     // [1] or null: all rows are valid
  float* partial;              // scratch: split_partial_bytes(M, E + H, O)
  int32_t* error;              // the error word or null
};

// Stage 1, pack_items(M) items: gathers and packs the activations. Stage 2 is skinny_linear_cpu on them.
SPARROW_CPU_KERNEL(hsr_pack_cpu, HsrProjectParams)

// For the library rows are gathered and multiplied in chunks of this many.
constexpr int64_t kHsrChunk = 512;

// The gathered rows and the products of a chunk for the library, 2 bytes an element, the products at a multiple of 64.
constexpr int64_t hsr_gathered_bytes(int64_t rows, int64_t width) {
  return (product(rows < kHsrChunk ? rows : kHsrChunk, width, 2) + 63) / 64 * 64;
}
constexpr int64_t hsr_library_bytes(int64_t rows, int64_t width, int64_t outputs) {
  return hsr_gathered_bytes(rows, width) + product(rows < kHsrChunk ? rows : kHsrChunk, outputs, 2);
}

// Bytes of scratch for M rows on any backend, with room to align it to 64 bytes.
constexpr int64_t hsr_project_workspace_bytes(int64_t rows, int64_t embed_width, int64_t hidden_width,
                                              int64_t outputs) {
  const int64_t width = embed_width + hidden_width;
  const int64_t packed = packed_bytes(rows < kHsrChunk ? rows : kHsrChunk, width);
  const int64_t partial = split_partial_bytes(rows, width, outputs) + 64;
  const int64_t library = rows > kSkinnyRows ? hsr_library_bytes(rows, width, outputs) + 64 : 0;
  const int64_t cuda = partial > library ? partial : library;
  return packed > cuda ? packed : cuda;
}

}  // namespace sparrow
