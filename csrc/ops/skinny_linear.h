// skinny_linear: out[m, o] = sum_k weight[o, k] x[m, k] + bias[o], for few rows m; skinny_linear_group: the same with
// up to kSkinnyWeights weights at once. fp32 accumulation in one order per (m, o) that the columns alone decide, one
// rounding: a row's bits do not depend on how many rows there are, nor on the other weights. More than kSkinnyRows rows
// are taken in even blocks (skinny_block).
#pragma once
#include "ops/skinny.h"

namespace sparrow {

constexpr int kSkinnyWeights = 3;

// One weight and what comes of it.
struct SkinnyPart {
  const void* weight;                 // [N, K], dense rows
  const void* bias;                   // [N] or null
  void* out;                          // [M, N], dense rows
  int64_t outputs;                    // N; 0 where there is no such part
  int64_t weight_stride, out_stride;  // elements
};

struct SkinnyLinearParams {
  const void* x;                  // [M, K], dense rows
  void* packed;                   // scratch: packed_bytes(M, K) bytes, 64-byte aligned
  int64_t rows, width, x_stride;  // M <= kSkinnyRows on the CPU, K, elements
  DType dtype;
  float* partial;  // the CUDA kernel's scratch: split_partial_bytes(M, K, all_outputs)
  SkinnyPart part[kSkinnyWeights];
};

constexpr int64_t all_outputs(const SkinnyLinearParams& p) {
  int64_t n = 0;
  for (const SkinnyPart& part : p.part) n += part.outputs;
  return n;
}

// The outputs of all parts in tiles of `size`; a part's last one may be shorter.
constexpr int64_t output_tiles(const SkinnyLinearParams& p, int64_t size) {
  int64_t n = 0;
  for (const SkinnyPart& part : p.part) n += (part.outputs + size - 1) / size;
  return n;
}

// Tile number `tile`: outputs of part `part` from `first` on, which is output `column` of all.
struct OutputTile {
  int part;
  int64_t first, column;
};
constexpr OutputTile output_tile(const SkinnyLinearParams& p, int64_t tile, int64_t size) {
  int part = 0;
  int64_t before = 0;  // outputs of the parts before
  for (; part + 1 < kSkinnyWeights; ++part) {
    const int64_t tiles = (p.part[part].outputs + size - 1) / size;
    if (tile < tiles) break;
    tile -= tiles;
    before += p.part[part].outputs;
  }
  return {part, tile * size, before + tile * size};
}

// Stage 1, pack_items(M) items: packs the activations. Stage 2, one item = a tile of kSkinnyTile outputs of all rows;
// it reads what is in `packed`, not x. Both stages must run on the same instruction set: the packed form is the set's
// own.
SPARROW_CPU_KERNEL(skinny_pack_cpu, SkinnyLinearParams)
SPARROW_CPU_KERNEL(skinny_linear_cpu, SkinnyLinearParams)

// Bytes of scratch for M rows on any backend, with room to align it to 64 bytes; outputs: of all weights.
constexpr int64_t skinny_linear_workspace_bytes(int64_t rows, int64_t width, int64_t outputs) {
  const int64_t packed = packed_bytes(rows < kSkinnyRows ? rows : kSkinnyRows, width);
  const int64_t partial = split_partial_bytes(rows, width, outputs) + 64;
  return packed > partial ? packed : partial;
}

}  // namespace sparrow
