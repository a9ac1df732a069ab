// What follows or replaces the matrix-unit kernel (attention.cuh): merging the splits, and attention by multiply-adds.
#include "kernels/attention.cuh"

#include "kernels/rope.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

__device__ __forceinline__ float warp_max(float x) {
  for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

// One block per (b, n, h). Every warp learns top and sum of all splits, then adds the splits s = warp, warp + 4, ...;
// the four sums are added in order.
template <class T>
__global__ void __launch_bounds__(kThreads) attention_combine_kernel(const __grid_constant__ TreeAttentionParams p) {
  await_previous_kernel();
  SMEM_ARRAY(float, sums, kWarps* kMaxHeadDim);
  const int b = blockIdx.y, n = blockIdx.x / static_cast<int>(p.heads), h = blockIdx.x % static_cast<int>(p.heads);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = static_cast<int>(p.heads / p.kv_heads);
  const int cols = static_cast<int>(padded_dim(p.dim));  // the matrix-unit kernel writes p.dim of them, a multiple of 8
  const Work w(p, b);
  const bool used = n < w.used;
  if (!used && !p.zero_unused) return;
  const int splits = used ? w.last + 1 : 0;
  const int64_t first = partial_row(p, b, 0, h / group, n * group + h % group);
  const int64_t step = p.kv_heads * p.nodes * group;  // from a split to the next
  const float2* stats = reinterpret_cast<const float2*>(p.stats) + first;

  float top = -INFINITY, sum = 0.f;
  for (int s = lane; s < splits; s += 32) top = fmaxf(top, stats[s * step].x);
  top = warp_max(top);
  const float base = top == -INFINITY ? 0.f : top;
  for (int s = lane; s < splits; s += 32) sum += exp2f(stats[s * step].x - base) * stats[s * step].y;
  sum = warp_sum(sum);

  for (int d = lane * 4; d < p.dim; d += 128) {
    float4 a = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
    for (int s = warp; s < splits; s += kWarps) {
      const float weight = exp2f(stats[s * step].x - base);
      const float4 x = *reinterpret_cast<const float4*>(p.partial + (first + s * step) * cols + d);
      a.x = fmaf(weight, x.x, a.x);
      a.y = fmaf(weight, x.y, a.y);
      a.z = fmaf(weight, x.z, a.z);
      a.w = fmaf(weight, x.w, a.w);
    }
    *reinterpret_cast<float4*>(sums + warp * kMaxHeadDim + d) = a;
  }
  __syncthreads();
  const float inverse = sum == 0.f ? 0.f : 1.f / sum;  // NaN goes on
  T* out = static_cast<T*>(p.out) + b * p.o_b + n * p.o_n + h * p.o_h;
  for (int d = threadIdx.x; d < p.dim; d += kThreads) {
    float x = 0.f;
    for (int i = 0; i < kWarps; ++i) x += sums[i * kMaxHeadDim + d];
    out[d] = static_cast<T>(x * inverse);
  }
  if (p.lse != nullptr && threadIdx.x == 0)
    p.lse[(b * p.nodes + n) * p.heads + h] = sum == 0.f ? -INFINITY : base * kLn2 + logf(sum);
}

// A warp per row. Of 32 keys at a time each lane scores one; then each lane sums 1/32 of the columns over the keys that
// are seen, so what a row does not see never reaches it.
struct PlainRow {
  float acc[kMaxHeadDim / 32] = {};
  float top = -INFINITY, sum = 0.f;  // sum: of this lane's keys
};

template <class T, class Key, class Value>
__device__ __forceinline__ void plain_step(PlainRow& row, const float* q, int dim, float scale, bool seen, Key key,
                                           Value value) {
  const int lane = threadIdx.x % 32;
  float score = -INFINITY;
  if (seen) {
    const T* k = key(lane);
    float dot = 0.f;
    for (int d = 0; d < dim; ++d) dot = fmaf(q[d], static_cast<float>(k[d]), dot);
    score = dot * scale;
  }
  const float high = fmaxf(row.top, warp_max(score)), base = high == -INFINITY ? 0.f : high;
  const float shrink = exp2f(row.top - base), weight = exp2f(score - base);
  row.top = high;
  row.sum = row.sum * shrink + weight;
  for (float& a : row.acc) a *= shrink;
  const unsigned all = __ballot_sync(0xffffffffu, seen);
  for (int j = 0; j < 32; ++j) {
    if ((all >> j & 1) == 0) continue;
    const float share = __shfl_sync(0xffffffffu, weight, j);
    const T* v = value(j);
#pragma unroll
    for (int i = 0; i < kMaxHeadDim / 32; ++i)
      if (lane + 32 * i < dim) row.acc[i] = fmaf(share, static_cast<float>(v[lane + 32 * i]), row.acc[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) attention_plain_kernel(const __grid_constant__ TreeAttentionParams p) {
  await_previous_kernel();
  SMEM_ARRAY(float, queries, kWarps* kMaxHeadDim);
  const int b = blockIdx.z, head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = static_cast<int>(p.heads / p.kv_heads), dim = static_cast<int>(p.dim);
  const int tiles = (static_cast<int>(p.nodes) * group + kWarps - 1) / kWarps, split = blockIdx.x / tiles;
  const int r = static_cast<int>(blockIdx.x) % tiles * kWarps + warp, n = r / group, h = head * group + r % group;
  const Work w(p, b);
  report_lengths(p, b);
  if (n >= w.used || split > w.last) return;  // of the whole warp
  float* q = queries + warp * kMaxHeadDim;
  for (int d = lane; d < dim; d += 32)
    q[d] = static_cast<float>((static_cast<const T*>(p.q) + b * p.q_b + n * p.q_n + h * p.q_h)[d]);
  __syncwarp();

  const T* k = static_cast<const T*>(p.k) + b * p.k_b + head * p.k_h;
  const T* v = static_cast<const T*>(p.v) + b * p.v_b + head * p.v_h;
  const float scale = p.scale * kLog2E;
  PlainRow row;
  const int begin = split * w.split_keys, end = min(begin + w.split_keys, w.text);
  for (int i = begin; i < end; i += 32)
    plain_step<T>(
        row, q, dim, scale, i + lane < end, [&](int j) { return k + w.prefix_row(i + j) * p.k_s; },
        [&](int j) { return v + w.prefix_row(i + j) * p.v_s; });
  for (int i = 0; split == w.last && i < w.slots; i += 32) {
    const uint64_t word = w.word(p, b, n, i / kWordBits) >> (i % kWordBits);
    plain_step<T>(
        row, q, dim, scale, (word >> lane & 1) != 0, [&](int j) { return k + w.tree_row(i + j) * p.k_s; },
        [&](int j) { return v + w.tree_row(i + j) * p.v_s; });
  }
  row.sum = warp_sum(row.sum);
  const int64_t slot = partial_row(p, b, split, head, r);
#pragma unroll
  for (int i = 0; i < kMaxHeadDim / 32; ++i)
    if (lane + 32 * i < padded_dim(dim)) p.partial[slot * padded_dim(dim) + lane + 32 * i] = row.acc[i];
  if (lane == 0) reinterpret_cast<float2*>(p.stats)[slot] = make_float2(row.top, row.sum);
}

}  // namespace

cudaError_t attention_combine(const TreeAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.nodes * p.heads), static_cast<unsigned>(p.batch));
  if (p.dtype == DType::f32)
    return SPARROW_LAUNCH((attention_combine_kernel<float>), grid, dim3(kThreads), 0, stream, p);
  if (p.dtype == DType::bf16)
    return SPARROW_LAUNCH((attention_combine_kernel<__nv_bfloat16>), grid, dim3(kThreads), 0, stream, p);
  return SPARROW_LAUNCH((attention_combine_kernel<__half>), grid, dim3(kThreads), 0, stream, p);
}

cudaError_t attention_plain(const TreeAttentionParams& p, cudaStream_t stream) {
  const int64_t tiles = (p.nodes * (p.heads / p.kv_heads) + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<unsigned>(tiles * p.splits), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  if (p.dtype == DType::f32) return SPARROW_LAUNCH((attention_plain_kernel<float>), grid, dim3(kThreads), 0, stream, p);
  if (p.dtype == DType::bf16)
    return SPARROW_LAUNCH((attention_plain_kernel<__nv_bfloat16>), grid, dim3(kThreads), 0, stream, p);
  return SPARROW_LAUNCH((attention_plain_kernel<__half>), grid, dim3(kThreads), 0, stream, p);
}

bool attention_mma_takes(const DraftAttentionParams& d, bool draft) {
  const TreeAttentionParams& p = d.attention;
  const int64_t e = size_of(p.dtype);
  if (p.dtype == DType::f32 || p.dim > kMmaHeadDim || p.dim % (draft ? 16 : 8) != 0) return false;
  const bool query = draft ? aligned16(d.qkv, e, d.qkv_b, d.qkv_t) && aligned16(d.cos_sin, sizeof(float), 0)
                           : aligned16(p.q, e, p.q_b, p.q_n, p.q_h);
  return query && aligned16(p.k, e, p.k_b, p.k_s, p.k_h) && aligned16(p.v, e, p.v_b, p.v_s, p.v_h) &&
         aligned16(p.out, e, p.o_b, p.o_n, p.o_h);
}

}  // namespace sparrow
