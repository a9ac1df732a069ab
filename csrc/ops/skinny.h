// Limits of the skinny GEMM y[m, o] = sum_i x[m, i] w[o, i] that hsr_project and lm_head_topk share
// (csrc/cpu/skinny_gemm.h).
#pragma once
#include "ops/common.h"

namespace sparrow {

// Up to this many activation rows take the streaming kernel, and a row's bits do not depend on how many there are.
// More rows reuse each weight often enough for the library's GEMM.
constexpr int64_t kSkinnyRows = 64;
// Outputs per tile of the streaming kernel.
constexpr int64_t kSkinnyTile = 48;

// Activation rows are packed four at a time (csrc/cpu/skinny_gemm.h).
constexpr int64_t kPackRows = 4;
constexpr int64_t pack_items(int64_t rows) { return (rows + kPackRows - 1) / kPackRows; }
// Bytes of M packed rows on any instruction set and for any element type, with room to align them to 64 bytes.
constexpr int64_t packed_bytes(int64_t rows, int64_t width) {
  return pack_items(rows) * kPackRows * ((width + 7) / 8 * 8) * 4 + 64;
}
inline void* align_packed(void* p) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63});
}

}  // namespace sparrow
