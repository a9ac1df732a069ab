#pragma once
#include "kernels/hsr_project.cuh"
#include "ops/skinny_linear.h"

namespace sparrow {

// hsr_project without a gather and without hidden states, kSkinnyRows rows at a time (float32: all at once).
inline cudaError_t skinny_linear_cuda(const SkinnyLinearParams& s, cudaStream_t stream) {
  const int64_t most = s.dtype == DType::f32 ? s.rows : kSkinnyRows, element = s.dtype == DType::f32 ? 4 : 2;
  HsrProjectParams p{};
  p.weight = s.weight, p.bias = s.bias, p.partial = s.partial, p.dtype = s.dtype;
  p.embed_width = s.width, p.outputs = s.outputs;
  p.embed_stride = s.x_stride, p.weight_stride = s.weight_stride, p.out_stride = s.out_stride;
  for (int64_t begin = 0; begin < s.rows; begin += most) {
    p.rows = p.vocab = s.rows - begin < most ? s.rows - begin : most;
    p.embed = static_cast<const char*>(s.x) + begin * s.x_stride * element;
    p.out = static_cast<char*>(s.out) + begin * s.out_stride * element;
    const cudaError_t error = hsr_project_cuda(p, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace sparrow
