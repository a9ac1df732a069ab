// lm_head_topk: skinny_gemm.cuh's main loop over tiles of 64 vocabulary rows, all columns in one block, with the top-k
// and the log-sum-exp as its epilogue: the fp32 logits of a tile live in shared memory only.
//   A warp looks after rows m = warp, warp + 4, ... of h. For each it keeps the running maximum, sum and top-k list of
//   warp_topk.cuh in shared memory between tiles. Each block leaves one partial result per row; topk_merge_cuda merges.
// A row's logits, and with them its bits, do not depend on how many rows there are.
#include "kernels/launchers.cuh"

#include "kernels/skinny_gemm.cuh"
#include "kernels/warp_topk.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;
static_assert(kLmHeadTile == kSkinnyOutputs, "a tile is a block's rows of w");
// Floats of the tile per row of h: lane (g, t) of a store then writes to bank 8 t + g, and no two to the same.
constexpr int kPitch = kSkinnyOutputs + 4;

// Rows of h by their addresses, in shared memory.
template <class T>
struct HiddenRows {
  const T* const* row;
  __device__ __forceinline__ const T* at(int m, int64_t k) const { return row[m] + k; }
  __device__ __forceinline__ uint4 gather(int m, int64_t k, int64_t end) const {
    return k < end ? gather8(row[m] + k, end - k) : make_uint4(0, 0, 0, 0);
  }
};

// Shared memory: the GEMM's stage, which the tile's logits then take over, and the rows' running results.
template <class T, int kTiles, bool kAligned>
struct LmHeadShared {
  using Gemm = SkinnyGemm<T, kTiles, kAligned>;
  static_assert(sizeof(float) * Gemm::kRows * kPitch <= sizeof(T) * Gemm::kStageElements, "logits fit the stage");
  T* stage;
  float *logits, *stat;
  uint64_t* list;
  const T** row;
  size_t bytes;
  __host__ __device__ explicit LmHeadShared(unsigned char* base) {
    SmemCarver c{base};
    stage = c.take<T>(Gemm::kStageElements);
    logits = reinterpret_cast<float*>(stage);
    list = c.take<uint64_t>(Gemm::kRows * 32);
    stat = c.take<float>(Gemm::kRows * 2);
    row = c.take<const T*>(Gemm::kRows);
    bytes = c.at;
  }
};

// Takes the tile's logits y[0 .. left) of one row, whose first index is v, into the row's running results; bias: null,
// or what is added to them. One warp.
__device__ __forceinline__ void fold_tile(const float* y, const float* bias, int64_t v, int64_t left, int k,
                                          float* stat, uint64_t* list) {
  const int lane = threadIdx.x % 32;
  const auto index_of = [&](int e) { return static_cast<uint32_t>(v + e * 32 + lane); };
  float x[2];
  uint32_t value[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    x[e] = e * 32 + lane < left ? y[e * 32 + lane] : -INFINITY;
    if (bias != nullptr && e * 32 + lane < left) x[e] += bias[v + e * 32 + lane];
    value[e] = e * 32 + lane < left ? ordered(x[e], ordered(-INFINITY)) : 0;
  }
  float high = stat[0], sum = stat[1];
  uint64_t best = list[lane];
  const float top = warp_max(fmaxf(x[0], x[1]));
  if (top > high) {
    sum *= rescale(high, top);
    high = top;
  }
  sum += warp_sum(exp_below(x[0], high) + exp_below(x[1], high));
  warp_topk_fold(best, k, value, index_of);
  list[lane] = best;
  __syncwarp();  // every lane has read stat
  if (lane == 0) {
    stat[0] = high;
    stat[1] = sum;
  }
  __syncwarp();
}

template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads, kAligned ? 4 : 2) lm_head_lists_kernel(LmHeadTopkParams p, uint64_t* keys) {
  await_previous_kernel();
  using Gemm = SkinnyGemm<T, kTiles, kAligned>;
  SMEM_DYNAMIC(raw);
  const LmHeadShared<T, kTiles, kAligned> s(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, k = static_cast<int>(p.parts.k);
  const int64_t tiles = lm_head_tiles_per_block(p.vocab), begin = blockIdx.x * tiles * kLmHeadTile;
  const int64_t end = begin + tiles * kLmHeadTile < p.vocab ? begin + tiles * kLmHeadTile : p.vocab;
  const T* weight = static_cast<const T*>(p.weight);
  const int rows = static_cast<int>(p.rows);
  typename Gemm::Stream stream;
  stream.open(weight + begin * p.weight_stride, p.weight_stride, p.vocab - begin, 0, p.width);
  if (threadIdx.x < rows)
    s.row[threadIdx.x] = static_cast<const T*>(p.h) +
                         Rows{p.inner, p.outer_stride, p.inner_stride}.at(p.first + static_cast<int64_t>(threadIdx.x));
  for (int m = warp; m < p.rows; m += kSkinnyWarps) {
    s.list[m * 32 + lane] = 0;
    if (lane == 0) {
      s.stat[m * 2] = -INFINITY;
      s.stat[m * 2 + 1] = 0.f;
    }
  }
  __syncwarp();
  for (int64_t v = begin; v < end; v += kLmHeadTile) {
    float acc[kTiles][4] = {};
    Gemm::run(acc, stream, HiddenRows<T>{s.row}, rows, s.stage, 0, p.width);
    const int64_t next = v + kLmHeadTile;  // its weights are under way while this tile is folded
    if (next < end) stream.open(weight + next * p.weight_stride, p.weight_stride, p.vocab - next, 0, p.width);
    __syncthreads();  // the stage's readers
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s.logits[skinny_row(n, i) * kPitch + skinny_output(i)] = acc[n][i];
    }
    __syncthreads();
    for (int m = warp; m < p.rows; m += kSkinnyWarps)
      fold_tile(s.logits + m * kPitch, bias_of(p.bias, p.first + m), v, end - v, k, s.stat + m * 2, s.list + m * 32);
    __syncthreads();  // the logits' readers
  }
  for (int m = warp; m < p.rows; m += kSkinnyWarps) {
    const int64_t entry = m * p.parts.chunks + blockIdx.x;
    if (lane < k) keys[entry * k + lane] = s.list[m * 32 + lane];
    if (lane < 2) p.parts.stat[entry * 2 + lane] = s.stat[m * 2 + lane];
  }
}

struct PlainRows {
  const float* x;
  Rows rows;
  int64_t start;
  __device__ __forceinline__ float at(int64_t m, int64_t k) const { return x[rows.at(start + m) + k]; }
};

// float32: block (4 vocabulary rows, 8 rows of h).
__global__ void __launch_bounds__(kThreads) lm_head_logits_kernel(LmHeadTopkParams p, float* logits) {
  await_previous_kernel();
  const int64_t v = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (v >= p.vocab) return;
  const PlainRows x{static_cast<const float*>(p.h), {p.inner, p.outer_stride, p.inner_stride}, p.first};
  plain_gemm(static_cast<const float*>(p.weight) + v * p.weight_stride, v, p.width, x,
             static_cast<int64_t>(blockIdx.y) * kPlainRows, p.rows,
             [&](int64_t m, int64_t o, float sum) { logits[m * p.vocab + o] = sum; });
}

bool aligned(const LmHeadTopkParams& p) {
  const auto multiple = [](int64_t elements) { return elements % 8 == 0; };
  const auto address = [](const void* a) { return reinterpret_cast<uintptr_t>(a) % 16 == 0; };
  return multiple(p.width) && multiple(p.weight_stride) && multiple(p.outer_stride) && multiple(p.inner_stride) &&
         address(p.h) && address(p.weight);
}

template <class T, int kTiles, bool kAligned>
cudaError_t launch(const LmHeadTopkParams& p, cudaStream_t stream) {
  const size_t bytes = LmHeadShared<T, kTiles, kAligned>(nullptr).bytes;
  return SPARROW_LAUNCH((lm_head_lists_kernel<T, kTiles, kAligned>), dim3(static_cast<unsigned>(p.parts.chunks)),
                        dim3(kThreads), bytes, stream, p, topk_keys(p.parts));
}

template <class T>
cudaError_t launch_any(const LmHeadTopkParams& p, cudaStream_t stream) {
  return with_tiles(p.rows, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    return aligned(p) ? launch<T, kTiles, true>(p, stream) : launch<T, kTiles, false>(p, stream);
  });
}

}  // namespace

cudaError_t lm_head_topk_cuda(const LmHeadTopkParams& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (p.rows > kSkinnyRows || p.dtype == DType::f32) return cudaErrorInvalidValue;
  return p.dtype == DType::bf16 ? launch_any<__nv_bfloat16>(p, stream) : launch_any<__half>(p, stream);
}

cudaError_t lm_head_logits_cuda(const LmHeadTopkParams& p, float* logits, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((p.vocab + kThreads / 32 - 1) / (kThreads / 32)),
                  static_cast<unsigned>((p.rows + kPlainRows - 1) / kPlainRows));
  return SPARROW_LAUNCH(lm_head_logits_kernel, grid, dim3(kThreads), 0, stream, p, logits);
}

}  // namespace sparrow
