// topk_lse: one block per (row, stretch of the vocabulary), then one warp per row merges.
//   A block reads a tile of 4096 logits into registers, 32 a thread, once: block maximum, running sum of exponentials
//   relative to it, and per warp the running top-k of warp_topk.cuh. At the end the four warps' lists are merged by
//   rank: distinct keys, so a key's place is the number of larger ones.
//   The merge keeps the head of each sorted list in shared memory; k rounds take the best head and advance its list.
// Sums are added in an order that depends on V alone.
#include "kernels/launchers.cuh"

#include "kernels/warp_topk.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kItems = kTopkTile / kThreads;

// The block's reduction of one float per thread; every thread gets the result. scratch: kWarps floats.
template <class Op>
__device__ __forceinline__ float block_reduce(float warp_result, float* scratch, const Op& op) {
  __syncthreads();  // an earlier call's readers
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = warp_result;
  __syncthreads();
  float r = scratch[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) r = op(r, scratch[w]);
  return r;
}

// The k best of the kWarps * k keys in `lists`, written to `out`.
__device__ __forceinline__ void merge_by_rank(const uint64_t* lists, int k, uint64_t* out) {
  const int n = kWarps * k;
  for (int c = threadIdx.x; c < n; c += kThreads) {
    const uint64_t key = lists[c];
    int rank = 0;
    for (int o = 0; o < n; ++o) rank += lists[o] > key || (lists[o] == key && o < c);  // the unused are all 0
    if (rank < k) out[rank] = key;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) topk_lists_kernel(TopkLseParams p, uint64_t* keys, int64_t chunk) {
  await_previous_kernel();
  SMEM_ARRAY(float, scratch, kWarps);
  SMEM_ARRAY(uint64_t, lists, kWarps* kTopkMax);
  constexpr int kVectors = kItems / kVec<T>;
  const int64_t row = blockIdx.x / p.parts.chunks, first = blockIdx.x % p.parts.chunks * chunk;
  const int64_t last = first + chunk < p.vocab ? first + chunk : p.vocab;
  const T* x = static_cast<const T*>(p.logits) + Rows{p.inner, p.outer_stride, p.inner_stride}.at(row);
  const bool aligned = is_aligned(x);
  const int k = static_cast<int>(p.parts.k);
  float high = -INFINITY, sum = 0.f;
  uint64_t list = 0;
  for (int64_t tile = first; tile < last; tile += kTopkTile) {
    float v[kItems];
    const auto index_of = [&](int e) {
      return static_cast<uint32_t>(tile + (e / kVec<T> * kThreads + threadIdx.x) * kVec<T> + e % kVec<T>);
    };
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      float part[kVec<T>];
      const int64_t at = tile + (u * kThreads + threadIdx.x) * kVec<T>;
      load_vec(part, x + at, last - at, aligned);
#pragma unroll
      for (int j = 0; j < kVec<T>; ++j) v[u * kVec<T> + j] = part[j];
    }
    if (p.bias.data != nullptr) {
      const float* bias = bias_of(p.bias, row);
#pragma unroll
      for (int e = 0; e < kItems; ++e)
        if (index_of(e) < last) v[e] += bias[index_of(e)];
    }
    float top = -INFINITY;
#pragma unroll
    // NaN loses
    for (int e = 0; e < kItems; ++e) top = fmaxf(top, v[e]);
    top = block_reduce(warp_max(top), scratch, [](float a, float b) { return fmaxf(a, b); });
    if (top > high) {
      sum *= rescale(high, top);
      high = top;
    }
    float part = 0.f;
    uint32_t value[kItems];
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      part += exp_below(v[e], high);
      value[e] = index_of(e) < last ? ordered(v[e], ordered(-INFINITY)) : 0;
    }
    sum += block_reduce(warp_sum(part), scratch, [](float a, float b) { return a + b; });
    warp_topk_fold(list, k, value, index_of);
  }
  if (threadIdx.x % 32 < k) lists[threadIdx.x / 32 * k + threadIdx.x % 32] = list;
  __syncthreads();
  merge_by_rank(lists, k, keys + static_cast<int64_t>(blockIdx.x) * k);
  if (threadIdx.x == 0) {
    p.parts.stat[blockIdx.x * int64_t{2}] = high;
    p.parts.stat[blockIdx.x * int64_t{2} + 1] = sum;
  }
}

// lse of one row from its lists' (maximum, sum), by one warp.
__device__ __forceinline__ float merge_lse(const float* stat, int lists) {
  float high = -INFINITY, sum = 0.f;
  for (int l = threadIdx.x; l < lists; l += 32) high = fmaxf(high, stat[2 * l]);
  high = warp_max(high);
  if (fabsf(high) == INFINITY) return high;
  for (int l = threadIdx.x; l < lists; l += 32) sum += stat[2 * l + 1] * rescale(stat[2 * l], high);
  return high + logf(warp_sum(sum));
}

__global__ void __launch_bounds__(32) topk_merge_kernel(TopkMergeParams p, const uint64_t* keys) {
  await_previous_kernel();
  SMEM_ARRAY(uint64_t, heads, kTopkLists);
  SMEM_ARRAY(uint8_t, taken, kTopkLists);
  const int lane = threadIdx.x, k = static_cast<int>(p.parts.k), lists = static_cast<int>(p.parts.chunks);
  const int64_t row = blockIdx.x;
  const uint64_t* in = keys + row * lists * k;
  const float lse = merge_lse(p.parts.stat + row * lists * 2, lists);
  // Lane l looks after the lists l, l + 32, ...: nobody else touches their heads.
  uint64_t mine = 0;
  int from = 0;
  for (int l = lane; l < lists; l += 32) {
    heads[l] = in[static_cast<int64_t>(l) * k];
    taken[l] = 0;
    if (heads[l] > mine) {
      mine = heads[l];
      from = l;
    }
  }
  for (int j = 0; j < k; ++j) {
    const uint64_t top = warp_max(mine);
    if (lane == 0) {
      const float x = from_ordered(key_value(top));
      const uint32_t index = key_index(top);
      p.logp[row * k + j] = x == -INFINITY ? -INFINITY : x == INFINITY ? 0.f : x - lse;
      p.ids[row * k + j] = p.id_map ? p.id_map[index] : index;
    }
    if (mine != top) continue;
    const int next = ++taken[from];
    heads[from] = next < k ? in[static_cast<int64_t>(from) * k + next] : 0;
    mine = 0;
    for (int l = lane; l < lists; l += 32)
      if (heads[l] > mine) {
        mine = heads[l];
        from = l;
      }
  }
  if (lane == 0) p.lse[row] = lse;
}

}  // namespace

cudaError_t topk_lse_cuda(const TopkLseParams& p, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  if (rows * p.parts.chunks > INT32_MAX) return cudaErrorInvalidConfiguration;  // the grid
  return with_dtype(p.dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return SPARROW_LAUNCH((topk_lists_kernel<T>), dim3(static_cast<unsigned>(rows * p.parts.chunks)), dim3(kThreads), 0,
                          stream, p, topk_keys(p.parts), topk_cuda_chunk(p.vocab));
  });
}

cudaError_t topk_merge_cuda(const TopkMergeParams& p, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  if (rows > INT32_MAX || p.parts.chunks > kTopkLists) return cudaErrorInvalidConfiguration;
  return SPARROW_LAUNCH(topk_merge_kernel, dim3(static_cast<unsigned>(rows)), dim3(32), 0, stream, p,
                        topk_keys(p.parts));
}

}  // namespace sparrow
