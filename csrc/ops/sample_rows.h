// sample_rows: one draw per row from softmax(logits / temperature), filtered by top-k, then top-p (Gumbel-max).
//   d_i     = (x_i - max x) / temperature                                   x = logits, in float64
//   kept    = { x_i >= k-th largest x }  (top_k > 0; ties of the k-th are all kept), of those, in the order (value
//             descending, index ascending), the ones with less than top_p of the probability before them (top_p < 1)
//   u_i     = (word + 0.5) 2^-32,  word = word (i % 4) of Philox4x32-10(counter = (i / 4, position low, position high,
//             kSampleStream), key = (seed low, seed high))
//   out     = argmax over kept i of d_i - log(-log u_i); ties go to the lowest index
// So the noise of a candidate depends on its sequence's seed, the drawn token's position and the candidate's id only,
// whatever the batch, the node or the vocabulary size: speculative and plain decoding draw the same tokens.
// temperature 0 is argmax_rows. NaN is never drawn above temperature 0. A row with +inf gives its first +inf; a row
// with nothing but -inf and NaN gives its argmax_rows.
// Layout: logits [B, N, V], any row strides, last dimension dense; everything else contiguous.
#pragma once
#include "ops/common.h"

namespace sparrow {

constexpr uint32_t kSampleStream = 0;      // the target's draws, and those of a drafter that draws with their noise
constexpr int64_t kSampleBlock = 64;       // tokens per entry of block_max
constexpr float kMinTemperature = 1e-30f;  // above 0: smaller ones have no float32 reciprocal to prune with
constexpr int64_t sample_blocks(int64_t vocab) { return (vocab + kSampleBlock - 1) / kSampleBlock; }

struct SampleRowsParams {
  const void* logits;
  const float* temperature;  // [B], 0 or >= kMinTemperature
  const int64_t* seed;       // [B]
  const int64_t* position;   // [B, N]
  const int32_t* top_k;      // [B] or null; 0 = off
  const float* top_p;        // [B] or null; 1 = off
  float* block_max;          // scratch [B, N, sample_blocks(V)]
  int64_t* out;              // [B, N]
  DType dtype;
  int64_t batch, nodes, vocab;
  int64_t stride_b, stride_n;  // of logits, in elements
};

// CUDA: 128 threads x 32 elements; 38 blocks a row at a real vocabulary's size. Scratch of one chunk (two pairs of 8
// bytes) and of one row.
constexpr int64_t kSampleChunk = 4096, kSampleChunkBytes = 32, kSampleRowBytes = 48;
constexpr int64_t sample_chunks(int64_t vocab) { return (vocab + kSampleChunk - 1) / kSampleChunk; }
// Bytes of scratch for M rows on any backend.
constexpr int64_t sample_rows_workspace_bytes(int64_t rows, int64_t vocab) {
  const int64_t cpu = sample_blocks(vocab) * 4, cuda = sample_chunks(vocab) * kSampleChunkBytes + kSampleRowBytes;
  return product(rows, cpu > cuda ? cpu : cuda);
}

// One item = one row: item i is row (i / nodes, i % nodes).
SPARROW_CPU_KERNEL(sample_rows_cpu, SampleRowsParams)

}  // namespace sparrow
