// Skinny GEMM y[m, o] = sum_i x[m, i] w[o, i] for M <= 64 activation rows: the weights are streamed once, the packed
// activations stay in cache.
// Order of accumulation of one (m, o): one vector accumulator, steps of Dot<T>::kStep elements from i = 0 up, the lanes
// added up at the end in a fixed order. It depends on nothing else, so neither do the bits: not on M, not on tiles.
// Registers hold kR weight rows x up to kT activation rows. With more activation rows than kT the columns are cut into
// blocks: a block of weights, read from memory by the first group of activation rows, is in the L1 cache for the
// others.
#pragma once
#include "cpu/vec.h"
#include "ops/skinny.h"

#define SPARROW_MEMBER static inline __attribute__((always_inline))

namespace sparrow {
namespace SPARROW_ISA {

#if defined(__AVX512F__)
constexpr int kR = 8, kT = 3;
#else
constexpr int kR = 4, kT = 3;
#endif

// One step of a dot product. X is the type of packed activations, V what a step holds of one row.
template <class T>
struct Dot {
  using X = float;
  using V = vf;
  static constexpr int kStep = kLanes;
  SPARROW_MEMBER V weights(const T* p) { return load(p); }
  SPARROW_MEMBER V weights_n(const T* p, int n) { return load_n(p, n); }
  SPARROW_MEMBER V activations(const X* p) { return load(p); }
  SPARROW_MEMBER vf add(vf acc, V w, V x) { return fma(w, x, acc); }
  SPARROW_MEMBER X pack(T x) { return to_f32(x); }
};

#if defined(__AVX512BF16__)
// Products of bf16 are exact in fp32; the instruction adds them in pairs and treats denormals as zero.
template <>
struct Dot<bf16_t> {
  using X = bf16_t;
  using V = __m512bh;
  static constexpr int kStep = 32;
  SPARROW_MEMBER V weights(const bf16_t* p) { return (V)_mm512_loadu_si512(p); }
  SPARROW_MEMBER V weights_n(const bf16_t* p, int n) { return (V)_mm512_maskz_loadu_epi16((1u << n) - 1, p); }
  SPARROW_MEMBER V activations(const X* p) { return (V)_mm512_loadu_si512(p); }
  SPARROW_MEMBER vf add(vf acc, V w, V x) { return _mm512_dpbf16_ps(acc, w, x); }
  SPARROW_MEMBER X pack(bf16_t x) { return x; }
};
#endif
static_assert(kPackAlign % Dot<bf16_t>::kStep == 0 && kPackAlign % Dot<float>::kStep == 0, "tails read the padding");

template <class T>
SPARROW_INLINE void pack(typename Dot<T>::X* dst, const T* src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = Dot<T>::pack(src[i]);
}
template <class X>
SPARROW_INLINE void pack_zeros(X* dst, int64_t n) {
  if (n > 0) std::memset(dst, 0, n * sizeof(X));
}

// acc[t][r] += columns [begin, end) of activation row t times weight row r. begin is a multiple of kStep.
template <class T, int kRows>
SPARROW_INLINE void add_block(vf* acc, const T* const* w, const typename Dot<T>::X* x, int64_t ldx, int64_t begin,
                              int64_t end) {
  using D = Dot<T>;
  vf a[kRows][kR];
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) a[t][r] = acc[t * kR + r];
  int64_t i = begin;
  for (; i + D::kStep <= end; i += D::kStep) {
    typename D::V xs[kRows];
#pragma GCC unroll 8
    for (int t = 0; t < kRows; ++t) xs[t] = D::activations(x + t * ldx + i);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const typename D::V wr = D::weights(w[r] + i);
#pragma GCC unroll 8
      for (int t = 0; t < kRows; ++t) a[t][r] = D::add(a[t][r], wr, xs[t]);
    }
  }
  if (i < end) {
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const typename D::V wr = D::weights_n(w[r] + i, static_cast<int>(end - i));
#pragma GCC unroll 8
      for (int t = 0; t < kRows; ++t) a[t][r] = D::add(a[t][r], wr, D::activations(x + t * ldx + i));
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) acc[t * kR + r] = a[t][r];
}

// out[r] = the sum of acc[r]'s lanes, in one order for all r.
SPARROW_INLINE void reduce_rows(const vf* acc, float* out) {
#if defined(__AVX512F__)
  __m512 s[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
    s[j] = _mm512_unpacklo_ps(acc[2 * j], acc[2 * j + 1]) + _mm512_unpackhi_ps(acc[2 * j], acc[2 * j + 1]);
  __m512d q[2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512d a = _mm512_castps_pd(s[2 * j]), b = _mm512_castps_pd(s[2 * j + 1]);
    q[j] = (__m512d)((__m512)_mm512_unpacklo_pd(a, b) + (__m512)_mm512_unpackhi_pd(a, b));
  }
  const __m512 u = (__m512)q[0], v = (__m512)q[1];  // rows 0..3, 4..7 in each 128-bit lane
  const __m512 h = _mm512_shuffle_f32x4(u, v, 0x88) + _mm512_shuffle_f32x4(u, v, 0xdd);
  const __m512 sum = h + _mm512_shuffle_f32x4(h, h, 0xb1);  // 128-bit lanes 0 and 2 hold the results
  _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_shuffle_f32x4(sum, sum, 0x08)));
#elif defined(__AVX2__)
  const __m256 s = _mm256_unpacklo_ps(acc[0], acc[1]) + _mm256_unpackhi_ps(acc[0], acc[1]);
  const __m256 t = _mm256_unpacklo_ps(acc[2], acc[3]) + _mm256_unpackhi_ps(acc[2], acc[3]);
  const __m256d a = _mm256_castps_pd(s), b = _mm256_castps_pd(t);
  const __m256 u = (__m256)_mm256_unpacklo_pd(a, b) + (__m256)_mm256_unpackhi_pd(a, b);
  _mm_storeu_ps(out, _mm256_castps256_ps128(u) + _mm256_extractf128_ps(u, 1));
#else
  for (int r = 0; r < kR; ++r) out[r] = reduce_add(acc[r]);
#endif
}

// Columns per block, so that the block of all activation rows takes about 16 KiB.
template <class T>
SPARROW_INLINE int64_t block_columns(int64_t m) {
  const int64_t bytes = m <= 8 ? 2048 : m <= 16 ? 1024 : 512;
  return bytes / static_cast<int64_t>(sizeof(typename Dot<T>::X));
}

// y[m * ldy + o] for o < outputs, m < rows; x: packed rows of ldx = packed_width(width) elements.
template <class T>
static void skinny_gemm(const T* w, int64_t ldw, int64_t outputs, const typename Dot<T>::X* x, int64_t rows,
                        int64_t width, float* y, int64_t ldy) {
  const int64_t ldx = packed_width(width), groups = (rows + kT - 1) / kT;
  const int64_t step = groups == 1 ? width : block_columns<T>(rows);
  vf acc[kSkinnyRows * kR];
  for (int64_t o = 0; o < outputs; o += kR) {
    const T* row[kR];  // beyond the last output: the last row again, its result dropped
    for (int64_t r = 0; r < kR; ++r) row[r] = w + (o + r < outputs ? o + r : outputs - 1) * ldw;
    for (int64_t i = 0; i < rows * kR; ++i) acc[i] = vf{};
    for (int64_t begin = 0; begin < width; begin += step) {
      const int64_t end = begin + step < width ? begin + step : width;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t m = rows * g / groups, count = rows * (g + 1) / groups - m;
        if (count == 3)
          add_block<T, 3>(acc + m * kR, row, x + m * ldx, ldx, begin, end);
        else if (count == 2)
          add_block<T, 2>(acc + m * kR, row, x + m * ldx, ldx, begin, end);
        else
          add_block<T, 1>(acc + m * kR, row, x + m * ldx, ldx, begin, end);
      }
    }
    const int64_t valid = outputs - o < kR ? outputs - o : kR;
    for (int64_t m = 0; m < rows; ++m) {
      float sums[kR];
      reduce_rows(acc + m * kR, sums);
      std::memcpy(y + m * ldy + o, sums, valid * sizeof(float));
    }
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
