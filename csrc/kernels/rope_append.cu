// rope_append: rope of q in place, of k into the cache, copy of v into the cache.
//   One block per node. Its work is a list of moves of 2 kVec elements (pairs d, d + D/2 of q and k heads) and of kVec
//   elements (v heads), dealt to the threads in order; kVec is 16 bytes' worth where shapes, strides and addresses
//   allow, else 1. A thread reads both halves of a pair before it writes them: q may be roped where it lies.
//   Blocks run in no order, so of two nodes with one slot the earlier finds the later one and leaves the cache alone.
#include "kernels/launchers.cuh"

#include "kernels/rope.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;  // a 7B layer has 256 + 64 moves a node: 2.5 per thread

template <class T, int kVec>
__device__ __forceinline__ void append_heads(const RopeAppendParams& p, int64_t b, int64_t n, int64_t slot,
                                             const float* cos_sin) {
  const int dim = static_cast<int>(p.dim), half = dim / 2, pairs = half / kVec, chunks = dim / kVec;
  const int kv_heads = static_cast<int>(p.kv_heads);
  for (int i = threadIdx.x; i < kv_heads * pairs; i += kThreads) {
    const int h = i / pairs, d = i % pairs * kVec;
    const T* k = static_cast<const T*>(p.k) + b * p.k_b + n * p.k_n + h * p.k_h + d;
    T* to = static_cast<T*>(p.k_cache) + b * p.kc_b + slot * p.kc_s + h * p.kc_h + d;
    auto low = load_pack<T, kVec>(k), high = load_pack<T, kVec>(k + half);
    rope_pairs(low, high, cos_sin + d, half);
    store_pack(to, low);
    store_pack(to + half, high);
  }
  for (int i = threadIdx.x; i < kv_heads * chunks; i += kThreads) {
    const int h = i / chunks, d = i % chunks * kVec;
    const T* v = static_cast<const T*>(p.v) + b * p.v_b + n * p.v_n + h * p.v_h + d;
    store_pack(static_cast<T*>(p.v_cache) + b * p.vc_b + slot * p.vc_s + h * p.vc_h + d, load_pack<T, kVec>(v));
  }
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) rope_append_kernel(const __grid_constant__ RopeAppendParams p) {
  await_previous_kernel();
  const int64_t b = blockIdx.y, n = blockIdx.x;
  const int dim = static_cast<int>(p.dim), half = dim / 2, pairs = half / kVec;
  const float* cos_sin = p.cos_sin + (b * p.nodes + n) * dim;
  for (int i = threadIdx.x; i < static_cast<int>(p.heads) * pairs; i += kThreads) {
    const int h = i / pairs, d = i % pairs * kVec;
    T* q = static_cast<T*>(p.q) + b * p.q_b + n * p.q_n + h * p.q_h + d;
    auto low = load_pack<T, kVec>(q), high = load_pack<T, kVec>(q + half);
    rope_pairs(low, high, cos_sin + d, half);
    store_pack(q, low);
    store_pack(q + half, high);
  }
  const int32_t* slots = p.slots + b * p.nodes;
  const int slot = slots[n];
  if (slot < 0 || slot >= p.cache_rows) return;  // of the whole block
  int later = 0;
  for (int64_t i = n + 1 + threadIdx.x; i < p.nodes; i += kThreads) later |= slots[i] == slot;
  if (__syncthreads_or(later)) return;
  append_heads<T, kVec>(p, b, n, slot, cos_sin);
}

template <class T>
cudaError_t launch(const RopeAppendParams& p, cudaStream_t stream) {
  constexpr int kVec = kPackOf16Bytes<T>;
  const int64_t e = sizeof(T);
  const bool wide = p.dim % (2 * kVec) == 0 && aligned16(p.q, e, p.q_b, p.q_n, p.q_h) &&
                    aligned16(p.k, e, p.k_b, p.k_n, p.k_h) && aligned16(p.v, e, p.v_b, p.v_n, p.v_h) &&
                    aligned16(p.k_cache, e, p.kc_b, p.kc_s, p.kc_h) && aligned16(p.v_cache, e, p.vc_b, p.vc_s, p.vc_h);
  const dim3 grid(static_cast<unsigned>(p.nodes), static_cast<unsigned>(p.batch));
  if (wide) return SPARROW_LAUNCH((rope_append_kernel<T, kVec>), grid, dim3(kThreads), 0, stream, p);
  return SPARROW_LAUNCH((rope_append_kernel<T, 1>), grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

cudaError_t rope_append_cuda(const RopeAppendParams& p, cudaStream_t stream) {
  if (p.batch * p.nodes * p.dim == 0) return cudaSuccess;
  if (p.dtype == DType::f32) return launch<float>(p, stream);
  if (p.dtype == DType::bf16) return launch<__nv_bfloat16>(p, stream);
  return launch<__half>(p, stream);
}

}  // namespace sparrow
