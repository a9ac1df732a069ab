// draft_attention: attention_mma.cuh with the rope of queries and new keys and the append to the cache inside the split
// kernel; where that does not serve (float32, head_dim not a multiple of 16, odd strides), a kernel of its own ropes
// and appends, and tree_attention does the rest with the roped queries.
#include "kernels/launchers.cuh"

#include "kernels/attention_mma.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;

// One block per row of one sequence: H query heads to the workspace, K key and value heads to the cache.
template <class T>
__global__ void __launch_bounds__(kThreads) draft_append_kernel(const __grid_constant__ DraftAttentionParams p) {
  await_previous_kernel();
  const TreeAttentionParams& a = p.attention;
  const int b = blockIdx.y, n = blockIdx.x, dim = static_cast<int>(a.dim), half = dim / 2;
  const int heads = static_cast<int>(a.heads), kv_heads = static_cast<int>(a.kv_heads);
  const Work w(a, b);
  if (n >= w.used) return;
  const bool append = w.start + n < w.slots;
  const T* x = static_cast<const T*>(p.qkv) + b * p.qkv_b + n * p.qkv_t;
  const float* cos_sin = p.cos_sin + (b * a.nodes + n) * dim;
  const int64_t row = w.tree_row(w.start + n);
  for (int i = threadIdx.x; i < (heads + kv_heads) * half; i += kThreads) {
    const int h = i / half, d = i % half;
    auto low = load_pack<T, 1>(x + h * dim + d), high = load_pack<T, 1>(x + h * dim + half + d);
    rope_pairs(low, high, cos_sin + d, half);
    T* to = h < heads ? static_cast<T*>(p.roped) + ((b * a.nodes + n) * heads + h) * dim
                      : static_cast<T*>(p.k_cache) + b * a.k_b + row * a.k_s + (h - heads) * a.k_h;
    if (h < heads || append) {
      store_pack(to + d, low);
      store_pack(to + half + d, high);
    }
  }
  for (int i = threadIdx.x; append && i < kv_heads * dim; i += kThreads) {
    const int h = i / dim, d = i % dim;
    (static_cast<T*>(p.v_cache) + b * a.v_b + row * a.v_s + h * a.v_h)[d] = x[(heads + kv_heads + h) * dim + d];
  }
}

cudaError_t append(const DraftAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.attention.nodes), static_cast<unsigned>(p.attention.batch));
  const DType t = p.attention.dtype;
  if (t == DType::f32) return SPARROW_LAUNCH((draft_append_kernel<float>), grid, dim3(kThreads), 0, stream, p);
  if (t == DType::bf16) return SPARROW_LAUNCH((draft_append_kernel<__nv_bfloat16>), grid, dim3(kThreads), 0, stream, p);
  return SPARROW_LAUNCH((draft_append_kernel<__half>), grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

cudaError_t attention_mma_draft(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream) {
  return launch_mma_type<true>(p, shared_limit, stream);
}

cudaError_t draft_attention_cuda(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream) {
  const TreeAttentionParams& a = p.attention;
  if (a.batch * a.nodes * a.heads == 0) return cudaSuccess;
  if (!attention_mma_takes(p, true)) {
    const cudaError_t e = append(p, stream);
    return e != cudaSuccess ? e : tree_attention_cuda(a, shared_limit, stream);
  }
  const cudaError_t e = attention_mma_draft(p, shared_limit, stream);
  return e != cudaSuccess || a.splits == 1 ? e : attention_combine(a, stream);
}

}  // namespace sparrow
