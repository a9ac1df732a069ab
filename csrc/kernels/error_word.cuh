// The error word: how a kernel says that it skipped a value out of range (ErrorBit). The caller reads it when it next
// synchronises.
#pragma once
#include "kernels/portable.cuh"
#include "ops/common.h"

namespace sparrow {

// Sets the bit where `bad`; error may be null.
__device__ __forceinline__ void report_if(bool bad, int32_t* error, ErrorBit bit) {
  if (bad && error != nullptr) atomicOr(error, static_cast<int32_t>(bit));
}

}  // namespace sparrow
