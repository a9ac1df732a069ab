// What the operators with a skinny GEMM share: its second stage, and the library's GEMM for as many activation rows as
// make that the faster one.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "bindings/checks.h"
#include "ops/skinny_linear.h"

#if defined(SPARROW_CUDA) && !defined(SPARROW_HOSTSIM)
// These live in libtorch_cuda.so; weak as in bindings/cuda.h.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                                               AtenTensorHandle mat1, AtenTensorHandle mat2,
                                                               double beta, double alpha);
__attribute__((weak)) AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle out, AtenTensorHandle self,
                                                            AtenTensorHandle mat2);
}
#endif

namespace sparrow {

// out = packed activations @ weight^T + bias, of every part.
inline void multiply_packed(const SkinnyLinearParams& p) {
  const int64_t work = p.rows * p.width * kSkinnyTile;  // multiply-adds of an item
  run_items(skinny_linear_cpu, p, output_tiles(p, kSkinnyTile), 1 + (1 << 19) / (work + 1));
}

// Rows [begin, begin + count) of the first dimension.
inline Tensor rows_of(const Tensor& t, int64_t begin, int64_t count) {
  Tensor view = t;
  return torch::stable::narrow(view, 0, begin, count);
}

// out = x @ weight^T + bias. Straight to the device's kernel: nothing is recorded for autograd.
inline void library_linear(const Tensor& out, const Tensor& x, const Tensor& weight,
                           const std::optional<Tensor>& bias) {
  const Tensor weight_t = torch::stable::transpose(weight, 0, 1);
#if defined(SPARROW_CUDA) && !defined(SPARROW_HOSTSIM)
  if (x.is_cuda()) {
    if (bias) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), bias->get(), x.get(), weight_t.get(), 1.0, 1.0));
    } else {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), x.get(), weight_t.get()));
    }
    return;
  }
#endif
  if (bias) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias->get(), x.get(), weight_t.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), x.get(), weight_t.get()));
  }
}

}  // namespace sparrow
