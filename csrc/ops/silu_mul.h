// silu_mul: out = T(T(gate / (1 + e^-gate)) up), each product rounded as in transformers' gated MLPs.
// Layout: rows of gate and up dense, out contiguous. An element's bits do not depend on where it lies.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct SiluMulParams {
  const void *gate, *up;  // [M, F]
  void* out;              // [M, F]
  int64_t rows, width;
  int64_t gate_stride, up_stride;  // elements
  DType dtype;
};

// Items are pieces of rows, kSiluPiece elements each.
constexpr int64_t kSiluPiece = 4096;
constexpr int64_t silu_pieces(int64_t width) { return (width + kSiluPiece - 1) / kSiluPiece; }
SPARROW_CPU_KERNEL(silu_mul_cpu, SiluMulParams)

}  // namespace sparrow
