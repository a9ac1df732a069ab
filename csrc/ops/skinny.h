// Limits of the skinny GEMM y[m, o] = sum_i x[m, i] w[o, i] that hsr_project and lm_head_topk share
// (csrc/cpu/skinny_gemm.h).
#pragma once
#include "ops/common.h"

namespace sparrow {

// Up to this many activation rows take the streaming kernel, and a row's bits do not depend on how many there are.
// More rows reuse each weight often enough for the library's GEMM.
constexpr int64_t kSkinnyRows = 64;
// A packed activation row is padded with zeros to a multiple of this many elements.
constexpr int64_t kPackAlign = 32;
constexpr int64_t packed_width(int64_t n) { return (n + kPackAlign - 1) / kPackAlign * kPackAlign; }

}  // namespace sparrow
