// Packing of rows of T for gemm (gemm_tile.h). A unit is what one multiply-add takes from a row: a float, or for
// bfloat16 with dot-product instructions a pair of neighbours. Nothing outside the given rows is read.
#pragma once
#include <utility>

#include "cpu/gemm_tile.h"

namespace sparrow {
namespace SPARROW_ISA {

template <class T>
SPARROW_INLINE vf load_up_to(const T* x, int64_t n) {
  return n >= kLanes ? load(x) : load_n(x, static_cast<int>(n));
}

// Units<T>::type, elements per unit, and kLanes units of a row as the bits of a vf (`n` elements; the rest is 0).
template <class T>
struct Units {
  using type = float;
  static constexpr int kPer = 1;
  SPARROW_INLINE vf load_units(const T* x, int64_t n) { return n >= kLanes ? load(x) : load_n(x, static_cast<int>(n)); }
};
#if defined(__AVX512BF16__)
template <>
struct Units<bf16_t> {
  using type = uint32_t;
  static constexpr int kPer = 2;
  SPARROW_INLINE vf load_units(const bf16_t* x, int64_t n) {
    const __mmask32 mask = n >= 32 ? ~0u : (1u << n) - 1;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, x));
  }
};
#endif
template <class T>
using Unit = typename Units<T>::type;

// Rows are asked for this many rows ahead: packing alternates with arithmetic, which the hardware's prefetcher does not
// bridge. The address may lie outside the tensor; a prefetch never faults.
constexpr int64_t kAhead = 32;
template <class T>
SPARROW_INLINE void prefetch(const T* x, int64_t stride, int64_t row, int64_t d) {
  __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(x) + sizeof(T) * (row * stride + d)));
}

template <class U>
SPARROW_INLINE void store_units(U* y, vf bits) {
  std::memcpy(y, &bits, sizeof bits);
}

// y [units] at element j = x rounded to T where units are pairs.
SPARROW_INLINE void store_rounded(float* y, int64_t j, vf x) { store(y + j, x); }
#if defined(__AVX512BF16__)
SPARROW_INLINE void store_rounded(uint32_t* y, int64_t j, vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + j / 2), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}
#endif

// Swaps bit S of the row number with bit S of the lane number in rows I and I + S.
template <int S, int... L>
SPARROW_INLINE void swap_bit(vf& a, vf& b, std::integer_sequence<int, L...>) {
  const vf x = __builtin_shufflevector(a, b, (L & S ? kLanes + (L ^ S) : L)...);
  b = __builtin_shufflevector(a, b, (L & S ? kLanes + L : (L ^ S))...);
  a = x;
}
template <int S>
SPARROW_INLINE void swap_bits(vf (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    if (!(i & S)) swap_bit<S>(rows[i], rows[i + S], std::make_integer_sequence<int, kLanes>());
}
SPARROW_INLINE void transpose(vf (&rows)[kLanes]) {
  if constexpr (kLanes > 8) swap_bits<8>(rows);
  if constexpr (kLanes > 4) swap_bits<4>(rows);
  swap_bits<2>(rows);
  swap_bits<1>(rows);
}

// y [units of dim][ld] = x [count][dim] transposed; columns from count to the next multiple of kLanes are 0.
template <class T>
SPARROW_INLINE void pack_columns(const T* x, int64_t stride, int64_t count, int64_t dim, Unit<T>* y, int64_t ld) {
  constexpr int kPer = Units<T>::kPer;
  const int64_t units = (dim + kPer - 1) / kPer;
  for (int64_t j = 0; j < count; j += kLanes)
    for (int64_t u = 0; u < units; u += kLanes) {
      vf rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        prefetch(x, stride, j + i + kAhead, u * kPer);
        rows[i] = j + i < count ? Units<T>::load_units(x + (j + i) * stride + u * kPer, dim - u * kPer) : vf{};
      }
      transpose(rows);
      const int64_t n = units - u < kLanes ? units - u : kLanes;
      for (int i = 0; i < kLanes; ++i)
        if (i < n) store_units(y + (u + i) * ld + j, rows[i]);
    }
}

// y [units of dim] = x [dim], padded with 0 to a multiple of kLanes units.
template <class T>
SPARROW_INLINE void pack_row(const T* x, int64_t dim, Unit<T>* y) {
  for (int64_t d = 0; d < dim; d += kLanes * Units<T>::kPer, y += kLanes)
    store_units(y, Units<T>::load_units(x + d, dim - d));
}

// y [ceil(count / kPer)][cols] = x [count][dim]: kPer rows side by side in the units of one row of y. Rows outside
// `seen` and columns from dim to cols are 0.
template <class T>
SPARROW_INLINE void pack_rows(const T* x, int64_t stride, int64_t count, uint64_t seen, int64_t dim, Unit<T>* y,
                              int64_t cols) {
  if constexpr (Units<T>::kPer == 1) {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t d = 0; d < cols; d += kLanes) {
        prefetch(x, stride, j + kAhead, d);
        const int64_t n = seen >> j & 1 && d < dim ? dim - d : 0;
        store_units(y + j * cols + d, n > 0 ? Units<T>::load_units(x + j * stride + d, n) : vf{});
      }
  } else {
#if defined(__AVX512BF16__)
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t j = 0; j < count; j += 2)
      for (int64_t d = 0; d < cols; d += 32) {
        prefetch(x, stride, j + kAhead, d);
        prefetch(x, stride, j + 1 + kAhead, d);
        const int64_t n = d < dim ? dim - d : 0, first = seen >> j & 1 ? n : 0;
        const int64_t second = j + 1 < count && seen >> (j + 1) & 1 ? n : 0;
        const __m512i a = _mm512_castps_si512(Units<T>::load_units(x + j * stride + d, first));
        const __m512i b = _mm512_castps_si512(Units<T>::load_units(x + (j + 1) * stride + d, second));
        Unit<T>* to = y + j / 2 * cols + d;
        _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
        if (d + 16 < cols) _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(a, high, b));
      }
#endif
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
