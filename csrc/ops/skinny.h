// Limits of the skinny GEMM y[m, o] = sum_i x[m, i] w[o, i] that skinny_linear, hsr_project and lm_head_topk share
// (csrc/cpu/skinny_gemm.h).
#pragma once
#include "ops/common.h"

namespace sparrow {

// Up to this many activation rows take one call of the streaming kernel; a row's bits do not depend on how many there
// are.
constexpr int64_t kSkinnyRows = 64;
// Rows of a call of the streaming kernel where there are more: as even as can be, in whole fours.
constexpr int64_t skinny_block(int64_t rows) {
  const int64_t calls = (rows + kSkinnyRows - 1) / kSkinnyRows;
  return calls < 2 ? kSkinnyRows : ((rows + calls - 1) / calls + 3) / 4 * 4;
}
static_assert(skinny_block(64) == 64 && skinny_block(65) == 36 && skinny_block(193) == 52 && skinny_block(256) == 64);
// More rows reuse each weight often enough for the library's GEMM to be worth its packing where it has a fast one: for
// bfloat16 where the machine has a fast instruction for it. Otherwise the streaming kernel is as fast in float32 (with
// AVX2 and on Intel; twice as fast on Zen 5), and in 16 bits one and a half (Intel, AVX-512) to six times (AVX2) as
// fast (oneMKL 2024.2, oneDNN).
inline bool use_library(int64_t rows, DType dtype) {
  const Isa isa = cpu_isa();
  return rows > kSkinnyRows && (isa == Isa::generic || (isa == Isa::avx512_bf16 && dtype == DType::bf16));
}
// Outputs per tile of the streaming kernel.
constexpr int64_t kSkinnyTile = 48;

// Activation rows are packed four at a time (csrc/cpu/skinny_gemm.h).
constexpr int64_t kPackRows = 4;
constexpr int64_t pack_items(int64_t rows) { return (rows + kPackRows - 1) / kPackRows; }
// Bytes of M packed rows on any instruction set and for any element type, with room to align them to 64 bytes.
constexpr int64_t packed_bytes(int64_t rows, int64_t width) {
  return product(pack_items(rows) * kPackRows, (width + 7) / 8 * 8, 4) + 64;
}
inline void* align_packed(void* p) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63});
}

// CUDA: a block sums this many columns, so a row's bits depend on the columns alone. 7168 columns and 3584 outputs make
// 7 x 56 blocks: three for each SM of an H200, of which it holds four at a time.
constexpr int64_t kSkinnySplit = 1024;
constexpr int64_t skinny_splits(int64_t width) { return (width + kSkinnySplit - 1) / kSkinnySplit; }
// With two blocks of kSkinnyOutputTile for each SM of an H200 a block goes through all splits itself, and no partial
// sums go through memory; so it does where there is one split.
constexpr int64_t kSkinnyOutputTile = 64, kSkinnyWholeTiles = 264;
constexpr bool skinny_whole(int64_t width, int64_t tiles) {
  return width <= kSkinnySplit || tiles >= kSkinnyWholeTiles;
}
constexpr int64_t kPlainRows = 8;  // CUDA, float32: rows of x per block
// fp32 partial sums [splits, M, O] of up to kSkinnyRows rows.
constexpr int64_t split_partial_bytes(int64_t rows, int64_t width, int64_t outputs) {
  return product(skinny_splits(width), rows < kSkinnyRows ? rows : kSkinnyRows, outputs, 4);
}

}  // namespace sparrow
