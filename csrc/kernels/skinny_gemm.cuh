// The main loop that skinny_linear, hsr_project and lm_head_topk share: y[o, m] = sum_k w[o, k] x[m, k] for up to 64
// rows m of x and 64 rows o of w per block of 4 warps, bf16 or fp16 in, fp32 accumulation by mma.m16n8k16.
//   Operands are swapped: A = 16 rows of w (a warp's), B = 8 rows of x, so few rows of x waste nothing. Weights go from
//   memory straight to registers: in a step of 32 columns, lane (g, t) = (lane / 4, lane % 4) loads the 16 bytes at
//   column 8 t of rows g and g + 8; words 0, 1 of them are one mma's A fragment, words 2, 3 the next one's. That is
//   m16n8k16's layout with the columns permuted, and as x is read from shared memory at the same columns, sums are of
//   the same products. A group of kGroup steps is loaded while the group before it is multiplied.
//   x is gathered into shared memory kStage columns at a time, by cp.async: a thread keeps its column and goes through
//   the rows, so all its loads are under way at once. The rows there are padded by 64 bytes: the 8 lanes of a 16-byte
//   read phase cover two rows of 64 bytes, in different banks. The order of accumulation depends on the columns alone,
//   so a row's bits do not depend on how many rows there are.
#pragma once
#include <initializer_list>

#include "kernels/logits.cuh"
#include "ops/skinny.h"

namespace sparrow {

constexpr int kSkinnyThreads = 128, kSkinnyWarps = kSkinnyThreads / 32;
constexpr int kSkinnyOutputs = 16 * kSkinnyWarps;  // rows of w per block
constexpr int kSkinnyStep = 32;
static_assert(kSkinnyOutputs == kSkinnyOutputTile, "a block's outputs");

// 16 bytes from p, of which the first n > 0 elements exist; the others are zeros. For data without 16-byte alignment.
template <class T>
__device__ __forceinline__ uint4 gather8(const T* p, int64_t n) {
  T v[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = j < n ? p[j] : from_float<T>(0.f);
  uint4 r;
  memcpy(&r, v, 16);
  return r;
}

// kTiles groups of 8 rows of x. kAligned: rows of w and of x's sources start at 16 bytes, widths are multiples of 8.
template <class T, int kTiles, bool kAligned>
struct SkinnyGemm {
  static constexpr int kRows = 8 * kTiles;
  // About 36 KB of shared memory: four blocks on an H200's SM, two on an SM with 99 KB.
  static constexpr int kStage = kTiles <= 2 ? 1024 : kTiles == 4 ? 512 : 256;
  static constexpr int kPitch = kStage + 32;
  static constexpr int kStageElements = kRows * kPitch;
  static constexpr int kGroup = 4;
  static constexpr int kColumns = kGroup * kSkinnyStep;  // of a group
  static_assert(kStage % (2 * kColumns) == 0 && kSkinnySplit % kStage == 0, "whole pairs of groups, whole stages");
  static constexpr int kChunks = kStage / 8,
                       kTogether = kSkinnyThreads / kChunks;  // chunks of a row; rows filled at once
  static_assert(kSkinnyThreads % kChunks == 0 && kRows % kTogether == 0, "each thread has one column of chunks");

  struct Group {
    uint4 w[kGroup][2];
  };

  // The lane's part of two rows of w; columns [.., end).
  struct Weights {
    const T* row[2];
    int64_t end;
    __device__ __forceinline__ uint4 load8(int r, int64_t k) const {
      if (k >= end) return make_uint4(0, 0, 0, 0);
      if constexpr (kAligned)
        return ptx::ld_nc16(row[r] + k);
      else
        return gather8(row[r] + k, end - k);
    }
    __device__ __forceinline__ void load(Group& group, int64_t k) const {
#pragma unroll
      for (int s = 0; s < kGroup; ++s)
#pragma unroll
        for (int r = 0; r < 2; ++r) group.w[s][r] = load8(r, k + s * kSkinnyStep + threadIdx.x % 4 * 8);
    }
  };

  // The block's weights on their way: two groups ahead of the multiplication.
  struct Stream {
    Weights weights;
    Group even, odd;
    // w: the block's first row; `outputs` of its kSkinnyOutputs rows exist (beyond: the last one again).
    __device__ __forceinline__ void open(const T* w, int64_t stride, int64_t outputs, int64_t begin, int64_t end) {
      weights.end = end;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t o = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * r;
        weights.row[r] = w + (o < outputs ? o : outputs - 1) * stride;
      }
      weights.load(even, begin);
      weights.load(odd, begin + kColumns);
    }
  };

  // x[m, k .. k + 8) for rows m < count and the stage's columns; zeros at and beyond `end`. What further rows hold
  // reaches their own sums only, which nobody reads.
  template <class Source>
  __device__ static __forceinline__ void fill_stage(T* stage, const Source& x, int count, int64_t begin, int64_t end) {
    const int k = static_cast<int>(threadIdx.x) % kChunks * 8;
    if (begin + k < (end + kSkinnyStep - 1) / kSkinnyStep * kSkinnyStep) {
#pragma unroll 4
      for (int m = static_cast<int>(threadIdx.x) / kChunks; m < count; m += kTogether) {
        T* to = stage + m * kPitch + k;
        if constexpr (kAligned) {
          const T* from = begin + k < end ? x.at(m, begin + k) : nullptr;
          ptx::cp_async16(to, from, from != nullptr);
        } else {
          *reinterpret_cast<uint4*>(to) = x.gather(m, begin + k, end);
        }
      }
    }
    ptx::cp_async_commit();
  }

  __device__ static __forceinline__ void multiply(float (&acc)[kTiles][4], const Group& group, const T* stage,
                                                  int64_t left) {
    const int lane = threadIdx.x % 32;
    const T* x = stage + lane / 4 * kPitch + lane % 4 * 8;
#pragma unroll
    for (int s = 0; s < kGroup; ++s) {
      if (s * kSkinnyStep >= left) break;
      const uint4 &w0 = group.w[s][0], &w1 = group.w[s][1];
      const uint32_t first[4] = {w0.x, w1.x, w0.y, w1.y}, second[4] = {w0.z, w1.z, w0.w, w1.w};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 b = *reinterpret_cast<const uint4*>(x + n * 8 * kPitch + s * kSkinnyStep);
        ptx::mma_m16n8k16<T>(acc[n], first, b.x, b.y);
        ptx::mma_m16n8k16<T>(acc[n], second, b.z, b.w);
      }
    }
  }

  // acc[n][i] += columns [begin, end) of w row g + 8 (i / 2) of the warp's 16 times x row 8 n + 2 t + i % 2, rows of x
  // < count. `stream` is at `begin` and is left at `end`, where that is a multiple of kStage beyond begin.
  // stage: kStageElements, free for the caller after a __syncthreads. Source, for m < count: at(m, k) is the address of
  // 8 elements of x, null for zeros; unaligned gather(m, k, end) gives them, zeros at and beyond column `end`.
  template <class Source>
  __device__ static __forceinline__ void run(float (&acc)[kTiles][4], Stream& stream, const Source& x, int count,
                                             T* stage, int64_t begin, int64_t end) {
    for (int64_t k0 = begin; k0 < end; k0 += kStage) {
      __syncthreads();  // the last stage's readers
      fill_stage(stage, x, count, k0, end);
      ptx::cp_async_wait<0>();
      __syncthreads();
      for (int64_t k = k0; k < end && k < k0 + kStage; k += 2 * kColumns) {
        multiply(acc, stream.even, stage + (k - k0), end - k);
        stream.weights.load(stream.even, k + 2 * kColumns);
        multiply(acc, stream.odd, stage + (k - k0) + kColumns, end - k - kColumns);
        stream.weights.load(stream.odd, k + 3 * kColumns);
      }
    }
  }
};

// Rows of x one `stride` apart.
template <class T>
struct DenseRows {
  const T* x;
  int64_t stride;
  __device__ __forceinline__ const T* at(int m, int64_t k) const { return x + m * stride + k; }
  __device__ __forceinline__ uint4 gather(int m, int64_t k, int64_t end) const {
    return k < end ? gather8(at(m, k), end - k) : make_uint4(0, 0, 0, 0);
  }
};

// f(kTiles) as a compile-time constant for this many rows of x, at most 64.
template <class F>
cudaError_t with_tiles(int64_t rows, const F& f) {
  if (rows <= 8) return f(std::integral_constant<int, 1>{});
  if (rows <= 16) return f(std::integral_constant<int, 2>{});
  if (rows <= 32) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

// 16-byte accesses are possible: every count of elements is a multiple of 8, every address of 16 bytes.
inline bool skinny_aligned(std::initializer_list<int64_t> elements, std::initializer_list<const void*> addresses) {
  for (const int64_t n : elements)
    if (n % 8 != 0) return false;
  for (const void* a : addresses)
    if (reinterpret_cast<uintptr_t>(a) % 16 != 0) return false;
  return true;
}

// Output and row of x of acc[n][i], within the block.
__device__ __forceinline__ int skinny_output(int i) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 * 8; }
__device__ __forceinline__ int skinny_row(int n, int i) { return n * 8 + threadIdx.x % 4 * 2 + i % 2; }

// A product is summed split by split of kSkinnySplit columns, and the splits in index order: a row's bits depend on the
// columns alone. Two ways to the same bits:
//   whole   block (64 outputs): all splits, where there are outputs enough to fill a GPU (skinny_whole)
//   parts   block (64 outputs, split): the split's sums to partial[split, m, o] for rows m < valid of `rows`, then
//   reduce  the splits added
// A block's outputs: rows of w from the first one on, `left` of which exist.
template <class T>
struct BlockRows {
  const T* w;
  int64_t stride, left;
};
// `column`: of the block's first output in partial, whose rows hold `outputs`.
template <class T, int kTiles, bool kAligned, class Source>
__device__ __forceinline__ void split_parts(const Source& x, const BlockRows<T>& w, int64_t width, int64_t column,
                                            int64_t outputs, int64_t rows, int valid, T* stage, float* partial) {
  using Gemm = SkinnyGemm<T, kTiles, kAligned>;
  const int64_t split = blockIdx.y;
  const int64_t begin = split * kSkinnySplit, end = begin + kSkinnySplit < width ? begin + kSkinnySplit : width;
  typename Gemm::Stream stream;
  stream.open(w.w, w.stride, w.left, begin, end);
  float acc[kTiles][4] = {};
  Gemm::run(acc, stream, x, valid, stage, begin, end);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t to = column + skinny_output(i);
      const int m = skinny_row(n, i);
      if (m < valid && to < column + w.left) partial[(split * rows + m) * outputs + to] = acc[n][i];
    }
  }
}
template <class T, int kTiles, bool kAligned, class Source>
__device__ __forceinline__ void whole_sums(float (&sum)[kTiles][4], const Source& x, const BlockRows<T>& w,
                                           int64_t width, int rows, T* stage) {
  using Gemm = SkinnyGemm<T, kTiles, kAligned>;
  typename Gemm::Stream stream;
  stream.open(w.w, w.stride, w.left, 0, width);
  for (int64_t begin = 0; begin < width; begin += kSkinnySplit) {
    const int64_t end = begin + kSkinnySplit < width ? begin + kSkinnySplit : width;
    float acc[kTiles][4] = {};
    Gemm::run(acc, stream, x, rows, stage, begin, end);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] += acc[n][i];
  }
}
// The splits of output `column` of row m added in index order, then its bias, at *bias if any.
template <class T>
__device__ __forceinline__ float split_sum(const float* partial, int splits, int64_t rows, int64_t outputs, int64_t m,
                                           int64_t column, const T* bias) {
  float sum = 0.f;
  for (int s = 0; s < splits; ++s) sum += partial[(s * rows + m) * outputs + column];
  return bias ? sum + to_float(*bias) : sum;
}
// Element o of a bias that may be null.
template <class T>
__device__ __forceinline__ const T* bias_of(const void* p, int64_t o) {
  return p ? static_cast<const T*>(p) + o : nullptr;
}

// ---- float32, by plain multiply-adds: for correctness, not for speed ----
// store(m, o, sum) for rows [first, first + 8) of x that exist and one row of w, by one warp. x.at(m, k): an element.
template <class Source, class Store>
__device__ __forceinline__ void plain_gemm(const float* w, int64_t o, int64_t width, const Source& x, int64_t first,
                                           int64_t rows, const Store& store) {
  const int lane = threadIdx.x % 32;
  float acc[kPlainRows] = {};
  for (int64_t k = lane; k < width; k += 32) {
    const float wk = w[k];
#pragma unroll
    for (int m = 0; m < kPlainRows; ++m)
      if (first + m < rows) acc[m] = fmaf(wk, x.at(first + m, k), acc[m]);
  }
#pragma unroll
  for (int m = 0; m < kPlainRows; ++m) {
    const float sum = warp_sum(acc[m]);
    if (lane == 0 && first + m < rows) store(first + m, o, sum);
  }
}

}  // namespace sparrow
