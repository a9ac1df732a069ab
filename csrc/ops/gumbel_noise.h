// gumbel_noise: the noise of sample_rows as a tensor, for a drafter that draws with it.
//   u       = (word + 0.5) 2^-32,  word = word (i % 4) of Philox4x32-10 as in sample_rows.h, i = the column's token id
//   out     = -log(-log u) in float32; near u = 1 from 1 - u, so that it is right to a few ulp everywhere
// Layout: everything contiguous.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct GumbelNoiseParams {
  const int64_t* seed;      // [B]
  const int64_t* position;  // [B, N]
  const int64_t* id_map;    // [V] or null: the token id of each column
  float* out;               // [B, N, V]
  int64_t batch, positions, vocab;
};

// One item = one piece of one row.
constexpr int64_t kNoisePiece = 1024;
constexpr int64_t noise_pieces(int64_t vocab) { return (vocab + kNoisePiece - 1) / kNoisePiece; }
SPARROW_CPU_KERNEL(gumbel_noise_cpu, GumbelNoiseParams)

}  // namespace sparrow
