// C[rows, cols] from A[rows, units] (broadcast) and B[units, cols] (vectors over cols), in register tiles.
// Every element of C is one chain of multiply-adds over ascending units, so its bits do not depend on the tiling.
#pragma once
#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVecs = 4;
#else
constexpr int kTileRows = 6, kTileVecs = 2;
#endif

SPARROW_INLINE vf mac(float a, const float* b, vf c) { return fma(splat(a), load(b), c); }
#if defined(__AVX512BF16__)
// Units are pairs of bfloat16: c + a0 b0 + a1 b1.
SPARROW_INLINE vf mac(uint32_t a, const uint32_t* b, vf c) {
  const __m512i x = _mm512_set1_epi32(static_cast<int>(a)), y = _mm512_loadu_si512(b);
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
}
#endif

// One register tile: MR rows x NV vectors. Finish(r, c, acc) takes the sums of row r at column c; Start gives them.
template <int MR, int NV, class Unit, class Start, class Finish>
SPARROW_INLINE void register_tile(const Unit* a, int64_t lda, const Unit* b, int64_t ldb, int64_t units, Start start,
                                  Finish finish) {
  vf acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = start(r, v * kLanes);
  for (int64_t u = 0; u < units; ++u)
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) acc[r][v] = mac(a[r * lda + u], b + u * ldb + v * kLanes, acc[r][v]);
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) finish(r, v * kLanes, acc[r][v]);
}

template <int NV, class Unit, class Start, class Finish>
SPARROW_INLINE void row_tiles(const Unit* a, int64_t lda, int64_t rows, const Unit* b, int64_t ldb, int64_t units,
                              Start start, Finish finish) {
  // Even tiles: 7 rows are 4 + 3, not 6 + 1.
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0, r0 = 0; t < tiles; ++t) {
    const int64_t r1 = rows * (t + 1) / tiles;
    const Unit* at = a + r0 * lda;
    const auto from = [&](int r, int c) { return start(r0 + r, c); };
    const auto to = [&](int r, int c, vf x) { finish(r0 + r, c, x); };
    switch (r1 - r0) {
      case 1: register_tile<1, NV>(at, lda, b, ldb, units, from, to); break;
      case 2: register_tile<2, NV>(at, lda, b, ldb, units, from, to); break;
      case 3: register_tile<3, NV>(at, lda, b, ldb, units, from, to); break;
      case 4: register_tile<4, NV>(at, lda, b, ldb, units, from, to); break;
      case 5: register_tile<5, NV>(at, lda, b, ldb, units, from, to); break;
      default: register_tile<6, NV>(at, lda, b, ldb, units, from, to); break;
    }
    r0 = r1;
  }
}

// cols is a multiple of kLanes. Start: vf(row, col); Finish: void(row, col, vf).
template <class Unit, class Start, class Finish>
SPARROW_INLINE void gemm(const Unit* a, int64_t lda, int64_t rows, const Unit* b, int64_t ldb, int64_t cols,
                         int64_t units, Start start, Finish finish) {
  int64_t c0 = 0;
  for (; c0 + kTileVecs * kLanes <= cols; c0 += kTileVecs * kLanes)
    row_tiles<kTileVecs>(
        a, lda, rows, b + c0, ldb, units, [&](int64_t r, int64_t c) { return start(r, c0 + c); },
        [&](int64_t r, int64_t c, vf x) { finish(r, c0 + c, x); });
  for (; c0 < cols; c0 += kLanes)
    row_tiles<1>(
        a, lda, rows, b + c0, ldb, units, [&](int64_t r, int64_t c) { return start(r, c0 + c); },
        [&](int64_t r, int64_t c, vf x) { finish(r, c0 + c, x); });
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
