// skinny_linear, skinny_linear_group: skinny_gemm.cuh over the rows of x as they lie in memory, split along the
// columns. A block's outputs are of one weight; those of all weights lie side by side in the grid and in partial.
//   1 parts   (64 outputs, split)   fp32 sums of the split's kSkinnySplit columns, to partial[split, m, o]
//   2 reduce  (outputs, row)        the splits added in index order, the bias, one rounding
#include "kernels/launchers.cuh"

#include "kernels/skinny_gemm.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;

template <class T>
__device__ __forceinline__ DenseRows<T> rows_of(const SkinnyLinearParams& p) {
  return {static_cast<const T*>(p.x), p.x_stride};
}

template <class T>
__device__ __forceinline__ BlockRows<T> weight_rows(const SkinnyPart& part, int64_t first) {
  return {static_cast<const T*>(part.weight) + first * part.weight_stride, part.weight_stride, part.outputs - first};
}

// Four blocks per SM: at most 128 registers. Gathering unaligned weights element by element takes more.
template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kSkinnyThreads, kAligned ? 4 : 2) skinny_parts_kernel(SkinnyLinearParams p) {
  await_previous_kernel();
  SMEM_ARRAY(uint4, stage, (SkinnyGemm<T, kTiles, kAligned>::kStageElements * sizeof(T) / 16));
  const OutputTile tile = output_tile(p, blockIdx.x, kSkinnyOutputs);
  split_parts<T, kTiles, kAligned>(rows_of<T>(p), weight_rows<T>(p.part[tile.part], tile.first), p.width, tile.column,
                                   all_outputs(p), p.rows, static_cast<int>(p.rows), reinterpret_cast<T*>(&stage[0]),
                                   p.partial);
}

// Two sums an output: of 64 rows of x with three blocks per SM.
template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kSkinnyThreads, !kAligned     ? 2
                                                  : kTiles == 8 ? 3
                                                                : 4) skinny_whole_kernel(SkinnyLinearParams p) {
  await_previous_kernel();
  SMEM_ARRAY(uint4, stage, (SkinnyGemm<T, kTiles, kAligned>::kStageElements * sizeof(T) / 16));
  const OutputTile tile = output_tile(p, blockIdx.x, kSkinnyOutputs);
  const SkinnyPart& part = p.part[tile.part];
  float sum[kTiles][4] = {};
  whole_sums<T, kTiles, kAligned>(sum, rows_of<T>(p), weight_rows<T>(part, tile.first), p.width,
                                  static_cast<int>(p.rows), reinterpret_cast<T*>(&stage[0]));
  const T* bias = static_cast<const T*>(part.bias);
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const int64_t o = tile.first + skinny_output(i);
    if (o >= part.outputs) continue;
    const float more = bias ? to_float(bias[o]) : 0.f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = i; j < i + 2; ++j) {
        const int64_t m = skinny_row(n, j);
        if (m < p.rows)
          static_cast<T*>(part.out)[m * part.out_stride + o] = from_float<T>(bias ? sum[n][j] + more : sum[n][j]);
      }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) skinny_reduce_kernel(SkinnyLinearParams p, int splits) {
  await_previous_kernel();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, m = blockIdx.y;
  if (column >= all_outputs(p)) return;
  const OutputTile at = output_tile(p, column, 1);
  const SkinnyPart& part = p.part[at.part];
  const T* bias = bias_of<T>(part.bias, at.first);
  const float sum = split_sum(p.partial, splits, p.rows, all_outputs(p), m, column, bias);
  static_cast<T*>(part.out)[m * part.out_stride + at.first] = from_float<T>(sum);
}

struct PlainRows {
  const float* x;
  int64_t stride;
  __device__ __forceinline__ float at(int64_t m, int64_t k) const { return x[m * stride + k]; }
};

// float32: block (4 outputs, 8 rows).
__global__ void __launch_bounds__(kThreads) skinny_plain_kernel(SkinnyLinearParams p) {
  await_previous_kernel();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (column >= all_outputs(p)) return;
  const OutputTile tile = output_tile(p, column, 1);
  const SkinnyPart& part = p.part[tile.part];
  float* out = static_cast<float*>(part.out);
  const float* bias = static_cast<const float*>(part.bias);
  plain_gemm(static_cast<const float*>(part.weight) + tile.first * part.weight_stride, tile.first, p.width,
             PlainRows{static_cast<const float*>(p.x), p.x_stride}, static_cast<int64_t>(blockIdx.y) * kPlainRows,
             p.rows,
             [&](int64_t m, int64_t o, float sum) { out[m * part.out_stride + o] = bias ? sum + bias[o] : sum; });
}

// 16-bit elements, up to kSkinnyRows rows.
template <class T, int kTiles, bool kAligned>
cudaError_t launch_tiles(const SkinnyLinearParams& p, cudaStream_t stream) {
  const unsigned tiles = static_cast<unsigned>(output_tiles(p, kSkinnyOutputs));
  if (skinny_whole(p.width, tiles))
    return SPARROW_LAUNCH((skinny_whole_kernel<T, kTiles, kAligned>), dim3(tiles), dim3(kThreads), 0, stream, p);
  const int64_t splits = skinny_splits(p.width);
  const cudaError_t error = SPARROW_LAUNCH((skinny_parts_kernel<T, kTiles, kAligned>),
                                           dim3(tiles, static_cast<unsigned>(splits)), dim3(kThreads), 0, stream, p);
  if (error != cudaSuccess) return error;
  const dim3 blocks(static_cast<unsigned>((all_outputs(p) + kThreads - 1) / kThreads), static_cast<unsigned>(p.rows));
  return SPARROW_LAUNCH((skinny_reduce_kernel<T>), blocks, dim3(kThreads), 0, stream, p, static_cast<int>(splits));
}

template <class T>
cudaError_t launch(const SkinnyLinearParams& p, cudaStream_t stream) {
  bool aligned = skinny_aligned({p.width, p.x_stride}, {p.x});
  for (const SkinnyPart& part : p.part) aligned = aligned && skinny_aligned({part.weight_stride}, {part.weight});
  return with_tiles(p.rows, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    return aligned ? launch_tiles<T, kTiles, true>(p, stream) : launch_tiles<T, kTiles, false>(p, stream);
  });
}

}  // namespace

cudaError_t skinny_linear_cuda(const SkinnyLinearParams& all, cudaStream_t stream) {
  if (all.rows == 0 || all_outputs(all) == 0) return cudaSuccess;
  if (all.dtype == DType::f32) {
    const int64_t groups = (all.rows + kPlainRows - 1) / kPlainRows;
    const dim3 grid(static_cast<unsigned>((all_outputs(all) + kThreads / 32 - 1) / (kThreads / 32)),
                    static_cast<unsigned>(groups));
    return SPARROW_LAUNCH(skinny_plain_kernel, grid, dim3(kThreads), 0, stream, all);
  }
  SkinnyLinearParams p = all;
  for (int64_t begin = 0; begin < all.rows; begin += kSkinnyRows) {
    p.rows = all.rows - begin < kSkinnyRows ? all.rows - begin : kSkinnyRows;
    p.x = static_cast<const char*>(all.x) + begin * all.x_stride * 2;
    for (int i = 0; i < kSkinnyWeights; ++i)
      p.part[i].out = static_cast<char*>(all.part[i].out) + begin * all.part[i].out_stride * 2;
    const cudaError_t error = p.dtype == DType::bf16 ? launch<__nv_bfloat16>(p, stream) : launch<__half>(p, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace sparrow
