// skinny_linear: out[m, o] = sum_k weight[o, k] x[m, k] + bias[o], for few rows m.
// fp32 accumulation in one order per (m, o) that the columns alone decide, one rounding: a row's bits do not depend on
// how many rows there are. More than kSkinnyRows rows are taken that many at a time.
#pragma once
#include "ops/skinny.h"

namespace sparrow {

struct SkinnyLinearParams {
  const void* x;                                // [M, K], dense rows
  const void* weight;                           // [N, K], dense rows
  const void* bias;                             // [N] or null
  void* out;                                    // [M, N], dense rows
  void* packed;                                 // scratch: packed_bytes(M, K) bytes, 64-byte aligned
  int64_t rows, width, outputs;                 // M <= kSkinnyRows on the CPU, K, N
  int64_t x_stride, weight_stride, out_stride;  // elements
  DType dtype;
  float* partial;  // the CUDA kernel's scratch: split_partial_bytes(M, K, N)
};

// Stage 1, pack_items(M) items: packs the activations. Stage 2, one item = kSkinnyTile outputs of all rows; it reads
// what is in `packed`, not x. Both stages must run on the same instruction set: the packed form is the set's own.
SPARROW_CPU_KERNEL(skinny_pack_cpu, SkinnyLinearParams)
SPARROW_CPU_KERNEL(skinny_linear_cpu, SkinnyLinearParams)

// Bytes of scratch for M rows on any backend, with room to align it to 64 bytes.
constexpr int64_t skinny_linear_workspace_bytes(int64_t rows, int64_t width, int64_t outputs) {
  const int64_t packed = packed_bytes(rows < kSkinnyRows ? rows : kSkinnyRows, width);
  const int64_t partial = split_partial_bytes(rows, width, outputs) + 64;
  return packed > partial ? packed : partial;
}

}  // namespace sparrow
