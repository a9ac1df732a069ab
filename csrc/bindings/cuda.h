// What the CUDA halves of the bindings share; nothing in a build without CUDA. Compiled by the host compiler; needs
// only cudart's headers.
#pragma once
#if defined(SPARROW_CUDA)
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "bindings/checks.h"
#include "kernels/launchers.cuh"

#if !defined(SPARROW_HOSTSIM)
// The one symbol that lives in libtorch_cuda.so. Weak: the library then loads under a CPU-only torch, too (the
// pointer is null there, and the CUDA dispatch key is never reached).
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
}
#endif

#if defined(SPARROW_HOSTSIM)
int64_t simulated_shared_limit();  // tests/hostsim/control.cpp
#endif

namespace sparrow {

#if defined(SPARROW_HOSTSIM)
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline cudaStream_t current_stream(const char*, const Tensor&) { return nullptr; }
inline int64_t shared_memory_limit(const char*, const Tensor&) { return simulated_shared_limit(); }
inline void check_launch(const char* op, cudaError_t error) {
  check_that(error == cudaSuccess, op, "CUDA error ", static_cast<int>(error));
}
#else
using torch::stable::accelerator::DeviceGuard;

inline void check_launch(const char* op, cudaError_t error) {
  check_that(error == cudaSuccess, op, "CUDA error: ", cudaGetErrorString(error));
}

inline cudaStream_t current_stream(const char* op, const Tensor& t) {
  check_that(&aoti_torch_get_current_cuda_stream != nullptr, op, "this torch has no CUDA support");
  void* stream = nullptr;
  check_that(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == AOTI_TORCH_SUCCESS, op,
             "torch gave no stream for ", device_name(t));
  return static_cast<cudaStream_t>(stream);
}

// Bytes of shared memory a block may ask for on the tensor's device.
inline int64_t shared_memory_limit(const char* op, const Tensor& t) {
  int bytes = 0;
  check_launch(op, cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, t.get_device_index()));
  return bytes;
}
#endif

// The second and third dimension of a grid end at 65535.
inline void check_grid(const char* op, const char* what, int64_t n, int64_t most = 65535) {
  check_that(n <= most, op, what, " must be <= ", most, " on CUDA, got ", n);
}

// Checked arguments go to their device: it is the current one while this lives, `stream` is where torch launches on it.
struct OnDevice {
  DeviceGuard guard;
  cudaStream_t stream;
  OnDevice(const char* op, const Tensor& t) : guard(t.get_device_index()), stream(current_stream(op, t)) {}
};

}  // namespace sparrow
#endif
