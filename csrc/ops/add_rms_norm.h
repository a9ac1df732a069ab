// add_rms_norm: sum = x + residual, rounded; out = T(T(sum / sqrt(mean(sum^2) + eps)) weight), as transformers rounds.
// The squares are added in float32, in one order that the width alone decides: a row's bits do not depend on others.
// Without a residual sum is x, and is not written. Layout: rows of x and residual dense; sum and out contiguous.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct AddRmsNormParams {
  const void *x, *residual;  // [M, E], residual may be null
  const void* weight;        // [E]
  void *sum, *out;           // [M, E], sum is null where residual is
  int64_t rows, width;
  int64_t x_stride, residual_stride;  // elements
  float eps;
  DType dtype;
};

// One item = one row.
SPARROW_CPU_KERNEL(add_rms_norm_cpu, AddRmsNormParams)

}  // namespace sparrow
