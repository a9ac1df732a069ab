// The library's GEMM, for as many activation rows as make it the faster one.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "bindings/checks.h"

namespace sparrow {

// Rows [begin, begin + count) of the first dimension.
inline Tensor rows_of(const Tensor& t, int64_t begin, int64_t count) {
  Tensor view = t;
  return torch::stable::narrow(view, 0, begin, count);
}

// out = x @ weight^T + bias. Straight to the CPU kernel: nothing is recorded for autograd.
inline void library_linear(const Tensor& out, const Tensor& x, const Tensor& weight,
                           const std::optional<Tensor>& bias) {
  const Tensor weight_t = torch::stable::transpose(weight, 0, 1);
  if (bias) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias->get(), x.get(), weight_t.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), x.get(), weight_t.get()));
  }
}

}  // namespace sparrow
