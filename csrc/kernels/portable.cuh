// portable.cuh - the few things a kernel source has to spell through a name of ours so that nvcc and the host
// simulator both take it: shared-memory declarations, the launch, and the wait for the kernel before.
#pragma once
#if defined(SPARROW_HOSTSIM)
#include "cuda_host.hpp"
#define SMEM_DYNAMIC(name) unsigned char* const name = ::hostsim::engine->dynamic_shared()
#define SMEM_ARRAY(T, name, n) \
  T(&name)[n] = *static_cast<T(*)[n]>(::hostsim::engine->static_shared(__FILE__, __LINE__, sizeof(T) * (n), alignof(T)))
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#define SMEM_DYNAMIC(name) extern __shared__ __align__(1024) unsigned char name[]
#define SMEM_ARRAY(T, name, n) __shared__ T name[n]
#endif

// Cuts the dynamic shared memory into arrays. Called with a null base it only adds up sizes, so host code that
// computes the launch's byte count and the kernel share one description. On the CPU each array is followed by a red
// zone, which ASan reports when it is touched.
struct SmemCarver {
  unsigned char* base;
  size_t at = 0;
  template <class T>
  __host__ __device__ __forceinline__ T* take(size_t n) {
    at = (at + 127) / 128 * 128;
    T* p = reinterpret_cast<T*>(base + at);
    at += n * sizeof(T);
#if defined(SPARROW_HOSTSIM)
    at = (at + 15) / 16 * 16 + 128;
#if defined(__SANITIZE_ADDRESS__)
    if (base)
      ASAN_POISON_MEMORY_REGION(reinterpret_cast<unsigned char*>(p + n),
                                base + at - reinterpret_cast<unsigned char*>(p + n));
#endif
#endif
    return p;
  }
};

namespace sparrow {

// The first line of every kernel. Where launches are programmatic (sm_90 and later; see `launches_early`) this lets the
// blocks of the next kernel in the stream come to their own such line while this kernel runs, and waits until all that
// the kernels before it wrote is there. Elsewhere it does nothing.
__device__ __forceinline__ void await_previous_kernel() {
#if defined(SPARROW_HOSTSIM)
  hostsim::engine->await_previous_kernel();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
}

#if !defined(SPARROW_HOSTSIM)
// Whether kernels are launched before the one ahead of them in the stream has ended: with SPARROW_PDL=1 in the
// environment, where they were compiled for sm_90 or later. Code for an older GPU has no line that waits, and must not
// start early on a newer one either. All kernels have the same architectures: the first to come speaks for a device.
inline bool launches_early(const void* kernel) {
  constexpr int kMostDevices = 64;
  static const char* const given = std::getenv("SPARROW_PDL");
  static std::atomic<int> known[kMostDevices];  // 0: not asked yet, 1: no, 2: yes
  int device = 0;
  if (given == nullptr || std::strcmp(given, "1") != 0) return false;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return false;
  if (known[device] == 0) {
    cudaFuncAttributes found{};
    known[device] = cudaFuncGetAttributes(&found, kernel) == cudaSuccess && found.ptxVersion >= 90 ? 2 : 1;
  }
  return known[device] == 2;
}
#endif

// Launches and returns the launch's error. Use through SPARROW_LAUNCH, which hands on the kernel's name.
template <class... P, class... A>
cudaError_t launch_kernel([[maybe_unused]] const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem,
                          cudaStream_t stream, A&&... args) {
#if defined(SPARROW_HOSTSIM)
  hostsim::record_launch(name, smem);
  hostsim::options.must_await = true;
  hostsim::launch(kernel, grid, block, smem, stream, std::forward<A>(args)...);
  return cudaSuccess;
#else
  if (smem > 48 * 1024) {
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaError_t e = cudaFuncSetAttribute(kernel, attribute, static_cast<int>(smem)); e != cudaSuccess) return e;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = launches_early(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
#endif
}

}  // namespace sparrow

// SPARROW_LAUNCH((my_kernel<T, 128>), grid, block, smem, stream, args...)
#define SPARROW_LAUNCH(kernel, ...) ::sparrow::launch_kernel(#kernel, kernel, __VA_ARGS__)
