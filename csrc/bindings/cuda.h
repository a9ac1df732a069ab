// What the CUDA halves of the bindings share. Compiled by the host compiler; needs only cudart's headers.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#if !defined(SPARROW_HOSTSIM)
// The one symbol that lives in libtorch_cuda.so. Weak: the library then loads under a CPU-only torch, too (the
// pointer is null there, and the CUDA dispatch key is never reached).
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
}
#endif

namespace sparrow {

#if defined(SPARROW_HOSTSIM)
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline cudaStream_t current_stream(const torch::stable::Tensor&) { return nullptr; }
inline int64_t shared_memory_limit(const torch::stable::Tensor&) { return 99 * 1024; }  // sm_89's, the smallest
inline void check_launch(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "sparrow::", op, ": CUDA error ", static_cast<int>(error));
}
#else
using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const torch::stable::Tensor& t) {
  STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr, "sparrow: this torch has no CUDA support");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Bytes of shared memory a block may ask for on the tensor's device.
inline int64_t shared_memory_limit(const torch::stable::Tensor& t) {
  int bytes = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, t.get_device_index());
  STD_TORCH_CHECK(error == cudaSuccess, "sparrow: ", cudaGetErrorString(error));
  return bytes;
}

inline void check_launch(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "sparrow::", op, ": ", cudaGetErrorString(error));
}
#endif

}  // namespace sparrow
