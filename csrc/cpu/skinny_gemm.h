// Skinny GEMM y[m, o] = sum_i x[m, i] w[o, i] for M <= 64 activation rows: the weights are streamed once, the packed
// activations stay in cache.
//
// Layout: a vector accumulator holds kTokens = kLanes / 4 activation rows ("tokens") x 4 partial sums of one weight
// row. A step takes 16 bytes of the weight row, broadcast to every token, and as many elements (kChunk) of each token.
// Packed activations are [step][vector][token][kChunk]: one sequential read.
//
// Order of accumulation of one (m, o): element i goes to partial sum (i % kChunk) * 4 / kChunk, in order of i; the four
// are added as (s0 + s2) + (s1 + s3). It depends on nothing else, so neither do the bits: not on M, not on tiles.
//
// Registers hold R weight rows x V vectors. Where all tokens fit, a group of R weight rows runs over its whole width;
// where they do not, the width is cut into blocks and the accumulators of a tile go through memory between them: a
// block of weights, read from memory once, is in the L1 cache for the other tokens.
#pragma once
#include "cpu/vec.h"
#include "ops/skinny.h"

#define SPARROW_MEMBER static inline __attribute__((always_inline))

namespace sparrow {
namespace SPARROW_ISA {

constexpr int kTokens = kLanes / 4;
// R weight rows where every group of vectors has fewer than kMaxVectors, else kFewRows: R * V accumulators fit.
#if defined(__AVX512F__)
constexpr int kMaxVectors = 4, kRows = 8, kFewRows = 6;
#else
constexpr int kMaxVectors = 3, kRows = 4, kFewRows = 4;
#endif
static_assert(kSkinnyTile % kRows == 0 && kSkinnyTile % kFewRows == 0, "a tile is whole groups of weight rows");
constexpr int64_t kBlockBytes = 512;      // of a weight row
constexpr int64_t kPrefetchBytes = 1536;  // how far ahead of its use a weight row is fetched

#if defined(__AVX512F__)
SPARROW_INLINE vf to_all_tokens(__m128 x) { return _mm512_broadcast_f32x4(x); }
#elif defined(__AVX2__)
SPARROW_INLINE vf to_all_tokens(__m128 x) { return _mm256_set_m128(x, x); }
#endif
#if defined(__AVX2__)
SPARROW_INLINE vf broadcast4(const float* p) { return to_all_tokens(_mm_loadu_ps(p)); }
SPARROW_INLINE vf broadcast4(const bf16_t* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return to_all_tokens(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16)));
}
SPARROW_INLINE vf broadcast4(const f16_t* p) {
  return to_all_tokens(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#else
template <class T>
SPARROW_INLINE vf broadcast4(const T* p) {  // one token per vector
  return load(p);
}
#endif

// One step of the dot products. X is the type of packed activations, V what a step holds of a weight row.
template <class T>
struct Step {
  using X = float;
  using V = vf;
  static constexpr int kChunk = 4;
  SPARROW_MEMBER V weights(const T* p) { return broadcast4(p); }
  SPARROW_MEMBER V activations(const X* p) { return load(p); }
  SPARROW_MEMBER vf add(vf acc, V w, V x) { return fma(w, x, acc); }
  SPARROW_MEMBER X pack(T x) { return to_f32(x); }
};

#if defined(__AVX512BF16__)
// Products of bf16 are exact in fp32; the instruction adds them in pairs and takes denormals as zero.
template <>
struct Step<bf16_t> {
  using X = bf16_t;
  using V = __m512bh;
  static constexpr int kChunk = 8;
  SPARROW_MEMBER V weights(const bf16_t* p) {
    return (V)_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  SPARROW_MEMBER V activations(const X* p) { return (V)_mm512_loadu_si512(p); }
  SPARROW_MEMBER vf add(vf acc, V w, V x) { return _mm512_dpbf16_ps(acc, w, x); }
  SPARROW_MEMBER X pack(bf16_t x) { return x; }
};
#endif

SPARROW_INLINE int64_t vectors_for(int64_t rows) { return (rows + kTokens - 1) / kTokens; }

// Row m of `rows` packed rows: element i is at x[i / kChunk * ld + i % kChunk].
template <class T>
struct PackedRow {
  using X = typename Step<T>::X;
  static constexpr int kChunk = Step<T>::kChunk;
  X* x;
  int64_t ld;

  PackedRow(void* packed, int64_t rows, int64_t m)
      : x(static_cast<X*>(packed) + m * kChunk), ld(vectors_for(rows) * kTokens * kChunk) {}

  // Elements [at, at + n) from src; zeros where src is null.
  inline __attribute__((always_inline)) void put(int64_t at, const T* src, int64_t n) const {
    int64_t i = 0;
    if (at % kChunk == 0) {
      for (; i + kChunk <= n; i += kChunk) {
        X* to = x + (at + i) / kChunk * ld;
        for (int j = 0; j < kChunk; ++j) to[j] = src ? Step<T>::pack(src[i + j]) : X{};
      }
    }
    for (; i < n; ++i) x[(at + i) / kChunk * ld + (at + i) % kChunk] = src ? Step<T>::pack(src[i]) : X{};
  }
};

// Packs rows [4 item, 4 item + 4) of `rows`; `fill(row, m)` puts the elements of row m.
template <class T, class Fill>
SPARROW_INLINE void pack_rows(void* packed, int64_t rows, int64_t width, int64_t item, const Fill& fill) {
  constexpr int64_t kChunk = Step<T>::kChunk;
  const int64_t padded = (width + kChunk - 1) / kChunk * kChunk;
  for (int64_t m = item * kPackRows; m < (item + 1) * kPackRows && m < vectors_for(rows) * kTokens; ++m) {
    const PackedRow<T> row(packed, rows, m);
    if (m < rows)
      fill(row, m);
    else
      row.put(0, nullptr, width);
    row.put(width, nullptr, padded - width);
  }
}

// The part of a tile that stays the same: the weights of R rows and the packed activations of V vectors.
template <class T>
struct Operands {
  const T* w[kRows];
  const typename Step<T>::X* x;
  int64_t ldx;  // from one step to the next
};

// Steps [i, end) of R x V dot products, a cache line of every weight row at a time, while the line `ahead` elements on
// is fetched. Returns where it stopped: less than a line before `end`.
template <class T, int R, int V, bool kFetch>
SPARROW_INLINE int64_t add_lines(vf (&a)[R][V], const Operands<T>& in, int64_t i, int64_t end, int64_t ahead) {
  using S = Step<T>;
  constexpr int kSteps = 64 / (S::kChunk * static_cast<int>(sizeof(T)));
  const typename S::X* x = in.x + i / S::kChunk * in.ldx;
  const T* w[R];
  SPARROW_UNROLL for (int r = 0; r < R; ++r) w[r] = in.w[r];
  for (; i + kSteps * S::kChunk <= end; i += kSteps * S::kChunk) {
    if (kFetch) {
      SPARROW_UNROLL for (int r = 0; r < R; ++r) __builtin_prefetch(
          reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(w[r]) + (i + ahead) * sizeof(T)));
    }
    SPARROW_UNROLL for (int s = 0; s < kSteps; ++s) {
      typename S::V xs[V];
      SPARROW_UNROLL for (int v = 0; v < V; ++v) xs[v] = S::activations(x + v * kTokens * S::kChunk);
      SPARROW_UNROLL for (int r = 0; r < R; ++r) {
        const typename S::V wr = S::weights(w[r] + i + s * S::kChunk);
        SPARROW_UNROLL for (int v = 0; v < V; ++v) a[r][v] = S::add(a[r][v], wr, xs[v]);
      }
      x += in.ldx;
    }
  }
  return i;
}

// The steps left over in [i, end), the last of which may be a part of a chunk. On memory: indices that are not
// constants would keep the accumulators of the loop above out of registers.
template <class T>
static void add_rest(vf* acc, int64_t lda, const Operands<T>& in, int64_t rows, int64_t vectors, int64_t i,
                     int64_t end) {
  using S = Step<T>;
  for (; i < end; i += S::kChunk) {
    const int64_t n = end - i < S::kChunk ? end - i : S::kChunk;
    const typename S::X* x = in.x + i / S::kChunk * in.ldx;
    for (int64_t r = 0; r < rows; ++r) {
      T chunk[S::kChunk] = {};
      std::memcpy(chunk, in.w[r] + i, n * sizeof(T));
      const typename S::V wr = S::weights(chunk);
      for (int64_t v = 0; v < vectors; ++v)
        acc[r * lda + v] = S::add(acc[r * lda + v], wr, S::activations(x + v * kTokens * S::kChunk));
    }
  }
}

// Where a tile's weights are and what is fetched while it runs: up to `turn` the elements `ahead` of the current one,
// from there on those `ahead_after` of it.
struct Span {
  int64_t begin, turn, end, ahead, ahead_after;
};

// acc[r * lda + v] (+)= columns [span.begin, span.end) of weight row r times vector v.
template <class T, int R, int V, bool kFetch>
static void add_tile(vf* acc, int64_t lda, const Operands<T>& in, const Span& span) {
  vf a[R][V];
  SPARROW_UNROLL for (int r = 0; r < R; ++r) SPARROW_UNROLL for (int v = 0; v < V; ++v) a[r][v] =
      span.begin == 0 ? vf{} : acc[r * lda + v];
  int64_t i = span.begin;
  if (kFetch) i = add_lines<T, R, V, true>(a, in, i, span.turn, span.ahead);
  i = add_lines<T, R, V, kFetch>(a, in, i, span.end, span.ahead_after);
  SPARROW_UNROLL for (int r = 0; r < R; ++r) SPARROW_UNROLL for (int v = 0; v < V; ++v) acc[r * lda + v] = a[r][v];
  if (i < span.end) add_rest(acc, lda, in, R, V, i, span.end);
}

// Only the first group of vectors to see a block of weights fetches.
template <class T, int R, int V>
SPARROW_INLINE void add_tile_if(bool fetch, vf* acc, int64_t lda, const Operands<T>& in, const Span& span) {
  if (fetch)
    add_tile<T, R, V, true>(acc, lda, in, span);
  else
    add_tile<T, R, V, false>(acc, lda, in, span);
}

template <class T>
SPARROW_INLINE void add_any_tile(int64_t rows, int64_t vectors, bool fetch, vf* acc, int64_t lda, const Operands<T>& in,
                                 const Span& span) {
  if (vectors == kMaxVectors) return add_tile_if<T, kFewRows, kMaxVectors>(fetch, acc, lda, in, span);
  if (rows == kFewRows && vectors == kMaxVectors - 1)
    return add_tile_if<T, kFewRows, kMaxVectors - 1>(fetch, acc, lda, in, span);
  if (vectors == 1) return add_tile_if<T, kRows, 1>(fetch, acc, lda, in, span);
  if (vectors == 2) return add_tile_if<T, kRows, 2>(fetch, acc, lda, in, span);
  add_tile_if<T, kRows, 3>(fetch, acc, lda, in, span);
}

// The four partial sums of a0 .. a3, added: to[0 .. 3] for the vector's first token, to + ld for the next, `tokens` in
// all.
SPARROW_INLINE void store_sums(vf a0, vf a1, vf a2, vf a3, float* to, int64_t ld, int64_t tokens) {
#if defined(__AVX512F__)
  const __m512 s = _mm512_unpacklo_ps(a0, a1) + _mm512_unpackhi_ps(a0, a1);
  const __m512 t = _mm512_unpacklo_ps(a2, a3) + _mm512_unpackhi_ps(a2, a3);
  const __m512d u = _mm512_castps_pd(s), v = _mm512_castps_pd(t);
  const __m512 sums = _mm512_castpd_ps(_mm512_unpacklo_pd(u, v)) + _mm512_castpd_ps(_mm512_unpackhi_pd(u, v));
  _mm_storeu_ps(to, _mm512_castps512_ps128(sums));
  if (tokens > 1) _mm_storeu_ps(to + ld, _mm512_extractf32x4_ps(sums, 1));
  if (tokens > 2) _mm_storeu_ps(to + 2 * ld, _mm512_extractf32x4_ps(sums, 2));
  if (tokens > 3) _mm_storeu_ps(to + 3 * ld, _mm512_extractf32x4_ps(sums, 3));
#elif defined(__AVX2__)
  const __m256 s = _mm256_unpacklo_ps(a0, a1) + _mm256_unpackhi_ps(a0, a1);
  const __m256 t = _mm256_unpacklo_ps(a2, a3) + _mm256_unpackhi_ps(a2, a3);
  const __m256d u = _mm256_castps_pd(s), v = _mm256_castps_pd(t);
  const __m256 sums = _mm256_castpd_ps(_mm256_unpacklo_pd(u, v)) + _mm256_castpd_ps(_mm256_unpackhi_pd(u, v));
  _mm_storeu_ps(to, _mm256_castps256_ps128(sums));
  if (tokens > 1) _mm_storeu_ps(to + ld, _mm256_extractf128_ps(sums, 1));
#else
  const vf a[4] = {a0, a1, a2, a3};
  for (int j = 0; j < 4; ++j) to[j] = (a[j][0] + a[j][2]) + (a[j][1] + a[j][3]);
  (void)ld;
  (void)tokens;  // one token
#endif
}

// What one call multiplies: `outputs` <= kSkinnyTile weight rows, all activation rows.
template <class T>
struct SkinnyTile {
  const T* w;
  int64_t ldw, outputs;
  const typename Step<T>::X* x;  // packed
  int64_t rows, width;
};

// y[m * ldy + o], ldy >= kSkinnyTile: columns beyond `outputs` are overwritten with anything.
template <class T>
static void skinny_gemm(const SkinnyTile<T>& p, float* y, int64_t ldy) {
  constexpr int64_t kElement = sizeof(T);
  const int64_t vectors = vectors_for(p.rows), parts = (vectors + kMaxVectors - 1) / kMaxVectors;
  const int64_t group = (vectors + parts - 1) / parts == kMaxVectors ? kFewRows : kRows;  // weight rows at a time
  const int64_t computed = (p.outputs + group - 1) / group * group;
  const int64_t block = parts > 1 ? kBlockBytes / kElement : p.width > 0 ? p.width : 1;
  const int64_t ahead = kPrefetchBytes / kElement < p.width ? kPrefetchBytes / kElement : p.width;
  vf acc[kSkinnyTile * ((kSkinnyRows + kTokens - 1) / kTokens)];
  Operands<T> in;
  in.ldx = vectors * kTokens * Step<T>::kChunk;
  for (int64_t begin = 0; begin < p.width || begin == 0; begin += block) {
    const int64_t end = begin + block < p.width ? begin + block : p.width;
    // One block: on in the same rows, at their end to the next group. Several: this group's next block.
    Span span{begin, end - ahead, end, ahead, group * p.ldw - p.width + ahead};
    if (parts > 1) span = {begin, end, end, end < p.width ? block : computed * p.ldw - begin, 0};
    for (int64_t o = 0; o < p.outputs; o += group) {
      for (int64_t r = 0; r < kRows; ++r)  // beyond the last output: the last row again, its result dropped
        in.w[r] = p.w + (o + r < p.outputs ? o + r : p.outputs - 1) * p.ldw;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t v = vectors * part / parts, count = vectors * (part + 1) / parts - v;
        in.x = p.x + v * kTokens * Step<T>::kChunk;
        add_any_tile<T>(group, count, part == 0, acc + o * vectors + v, vectors, in, span);
      }
    }
  }
  for (int64_t o = 0; o < p.outputs; o += 4) {
    const vf* a = acc + o * vectors;
    const vf* last = acc + (computed - 1) * vectors;
    const vf *b = a + vectors < last ? a + vectors : last, *c = b + vectors < last ? b + vectors : last,
             *d = c + vectors < last ? c + vectors : last;
    for (int64_t v = 0; v < vectors; ++v)
      store_sums(a[v], b[v], c[v], d[v], y + v * kTokens * ldy + o, ldy, p.rows - v * kTokens);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
