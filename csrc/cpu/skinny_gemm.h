// Skinny GEMM y[m, o] = sum_i x[m, i] w[o, i] for M <= 64 activation rows: the weights are streamed once, the packed
// activations stay in cache.
//
// Layout: a vector accumulator holds kTokens = kLanes / 4 activation rows ("tokens") x 4 partial sums of one weight
// row. A step takes kChunk elements of the weight row, broadcast to every token, and as many of each token: 4 at once,
// or 8 as those with even numbers and then those with odd ones (kHalves), or 8 in pairs.
// Vectors are cut into parts of kMaxVectors at most, as even as can be; packed activations are
// [part][step][vector][half][token][kChunk / kHalves]: what a part reads is one sequential read.
//
// Order of accumulation of one (m, o): element i goes to partial sum (i % kChunk) * 4 / kChunk, in order of i; the four
// are added as (s0 + s2) + (s1 + s3). It depends on nothing else, so neither do the bits: not on M, not on tiles.
//
// Registers hold R weight rows x V vectors. With one part, a group of R weight rows runs over its whole width; with
// several, the width is cut into blocks and the accumulators of a tile go through memory between them: a block of
// weights, read from memory once, is in the L1 cache for the other parts.
#pragma once
#include "cpu/vec.h"
#include "ops/skinny.h"

#define SPARROW_MEMBER static inline __attribute__((always_inline))

namespace sparrow {
namespace SPARROW_ISA {

constexpr int kTokens = kLanes / 4;
// Weight rows at a time where the largest part has so many vectors: R * V accumulators, V activations and a weight fit
// the registers, and there are as many sums under way as the multipliers need.
#if defined(__AVX512F__)
constexpr int kMaxVectors = 4;
#if defined(__AVX512BF16__)
constexpr int64_t kBlockBytes = 512;  // of a weight row, where there are several parts
#else
constexpr int64_t kBlockBytes = 4096;
#endif
constexpr int weight_rows(int64_t vectors) { return vectors == 4 ? 6 : 8; }
#else
constexpr int kMaxVectors = 3;
constexpr int64_t kBlockBytes = 2048;
constexpr int weight_rows(int64_t vectors) { return vectors == 3 ? 4 : vectors == 2 ? 6 : 8; }
#endif
constexpr int kRows = weight_rows(1);  // the most
static_assert(kSkinnyTile % weight_rows(1) == 0 && kSkinnyTile % weight_rows(2) == 0 &&
                  kSkinnyTile % weight_rows(kMaxVectors) == 0,
              "a tile is whole groups of weight rows");
constexpr int64_t kPrefetchBytes = 1536;  // how far ahead of its use a weight row is fetched

#if defined(__AVX512F__)
SPARROW_INLINE vf to_all_tokens(__m128 x) { return _mm512_broadcast_f32x4(x); }
#elif defined(__AVX2__)
SPARROW_INLINE vf to_all_tokens(__m128 x) { return _mm256_set_m128(x, x); }
#endif
#if defined(__AVX2__)
SPARROW_INLINE vf broadcast4(const float* p) { return to_all_tokens(_mm_loadu_ps(p)); }
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
  static constexpr int kChunk = 4, kHalves = 1;
  SPARROW_MEMBER V weights(const T* p, int) { return broadcast4(p); }
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
  static constexpr int kChunk = 8, kHalves = 1;
  SPARROW_MEMBER V weights(const bf16_t* p, int) {
    return (V)_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  SPARROW_MEMBER V activations(const X* p) { return (V)_mm512_loadu_si512(p); }
  SPARROW_MEMBER vf add(vf acc, V w, V x) { return _mm512_dpbf16_ps(acc, w, x); }
  SPARROW_MEMBER X pack(bf16_t x) { return x; }
};
#elif defined(__AVX2__)
// Eight elements come with one load; an instruction widens every other one.
template <>
struct Step<bf16_t> {
  using X = float;
  using V = vf;
  static constexpr int kChunk = 8, kHalves = 2;
  SPARROW_MEMBER V weights(const bf16_t* p, int half) {
#if defined(__AVX512F__)
    const __m512i bits = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return half == 0 ? (vf)_mm512_slli_epi32(bits, 16) : upper_half((vu)bits);
#else
    const __m256i bits = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return half == 0 ? (vf)_mm256_slli_epi32(bits, 16) : upper_half((vu)bits);
#endif
  }
  SPARROW_MEMBER V activations(const X* p) { return load(p); }
  SPARROW_MEMBER vf add(vf acc, V w, V x) { return fma(w, x, acc); }
  SPARROW_MEMBER X pack(bf16_t x) { return to_f32(x); }
};
#endif

// Packed elements of a vector that a half of a step takes.
template <class T>
constexpr int kHalf = kTokens * Step<T>::kChunk / Step<T>::kHalves;

SPARROW_INLINE int64_t vectors_for(int64_t rows) { return (rows + kTokens - 1) / kTokens; }

// How the vectors of `rows` activation rows are cut into parts.
struct Parts {
  int64_t vectors, count;

  explicit Parts(int64_t rows) : vectors(vectors_for(rows)), count((vectors + kMaxVectors - 1) / kMaxVectors) {}
  int64_t first(int64_t part) const { return vectors * part / count; }
  int64_t most() const { return (vectors + count - 1) / count; }
  int64_t of(int64_t vector) const { return ((vector + 1) * count - 1) / vectors; }
};

// Row m of `rows` packed rows of `steps` steps: element i is at x[i / kChunk * ld + place(i % kChunk)].
template <class T>
struct PackedRow {
  using X = typename Step<T>::X;
  static constexpr int kChunk = Step<T>::kChunk, kHalves = Step<T>::kHalves;
  X* x;
  int64_t ld;

  PackedRow(void* packed, int64_t rows, int64_t steps, int64_t m) {
    const Parts parts(rows);
    const int64_t part = parts.of(m / kTokens), first = parts.first(part);
    ld = (parts.first(part + 1) - first) * kTokens * kChunk;
    const int64_t vector = first * steps + m / kTokens - first;
    x = static_cast<X*>(packed) + vector * kTokens * kChunk + m % kTokens * (kChunk / kHalves);
  }
  SPARROW_MEMBER int64_t place(int64_t i) { return i % kHalves * kHalf<T> + i / kHalves; }

  // Elements [at, at + n) from src; zeros where src is null.
  inline __attribute__((always_inline)) void put(int64_t at, const T* src, int64_t n) const {
    int64_t i = 0;
    if (at % kChunk == 0) {
      for (; i + kChunk <= n; i += kChunk) {
        X* to = x + (at + i) / kChunk * ld;
        for (int j = 0; j < kChunk; ++j) to[place(j)] = src ? Step<T>::pack(src[i + j]) : X{};
      }
    }
    for (; i < n; ++i) x[(at + i) / kChunk * ld + place((at + i) % kChunk)] = src ? Step<T>::pack(src[i]) : X{};
  }
};

// Packs rows [4 item, 4 item + 4) of `rows`; `fill(row, m)` puts the elements of row m.
template <class T, class Fill>
SPARROW_INLINE void pack_rows(void* packed, int64_t rows, int64_t width, int64_t item, const Fill& fill) {
  constexpr int64_t kChunk = Step<T>::kChunk;
  const int64_t padded = (width + kChunk - 1) / kChunk * kChunk;
  for (int64_t m = item * kPackRows; m < (item + 1) * kPackRows && m < vectors_for(rows) * kTokens; ++m) {
    const PackedRow<T> row(packed, rows, padded / kChunk, m);
    if (m < rows)
      fill(row, m);
    else
      row.put(0, nullptr, width);
    row.put(width, nullptr, padded - width);
  }
}

// The part of a tile that stays the same: the weights of R rows and the packed activations of V vectors; and the rows
// of weights that are fetched meanwhile.
template <class T>
struct Operands {
  const T *w[kRows], *fetch[kRows];
  const typename Step<T>::X* x;
  int64_t ldx;  // from one step to the next
};

// Steps [i, end) of R x V dot products, a cache line of every weight row at a time, while the lines `ahead` elements on
// of F rows are fetched. Returns where it stopped: less than a line before `end`.
template <class T, int R, int V, int F>
SPARROW_INLINE int64_t add_lines(vf (&a)[R][V], const Operands<T>& in, int64_t i, int64_t end, int64_t ahead) {
  using S = Step<T>;
  constexpr int kSteps = 64 / (S::kChunk * static_cast<int>(sizeof(T)));
  const typename S::X* x = in.x + i / S::kChunk * in.ldx;
  const T* w[R];
  SPARROW_UNROLL for (int r = 0; r < R; ++r) w[r] = in.w[r];
  for (; i + kSteps * S::kChunk <= end; i += kSteps * S::kChunk) {
    SPARROW_UNROLL for (int r = 0; r < F; ++r) __builtin_prefetch(
        reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(in.fetch[r]) + (i + ahead) * sizeof(T)));
    SPARROW_UNROLL for (int s = 0; s < kSteps; ++s) {
      SPARROW_UNROLL for (int half = 0; half < S::kHalves; ++half) {
        if (half > 0) asm volatile("" ::: "memory");  // load the weights again: there is no register to keep them in
        typename S::V xs[V];
        SPARROW_UNROLL for (int v = 0; v < V; ++v) xs[v] = S::activations(x + (v * S::kHalves + half) * kHalf<T>);
        SPARROW_UNROLL for (int r = 0; r < R; ++r) {
          const typename S::V wr = S::weights(w[r] + i + s * S::kChunk, half);
          SPARROW_UNROLL for (int v = 0; v < V; ++v) a[r][v] = S::add(a[r][v], wr, xs[v]);
        }
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
      for (int half = 0; half < S::kHalves; ++half) {
        const typename S::V wr = S::weights(chunk, half);
        for (int64_t v = 0; v < vectors; ++v)
          acc[r * lda + v] = S::add(acc[r * lda + v], wr, S::activations(x + (v * S::kHalves + half) * kHalf<T>));
      }
    }
  }
}

// Where a tile's weights are and what is fetched while it runs: up to `turn` the elements `ahead` of the current one,
// from there on those `ahead_after` of it.
struct Span {
  int64_t begin, turn, end, ahead, ahead_after;
};

// acc[r * lda + v] (+)= columns [span.begin, span.end) of weight row r times vector v.
template <class T, int R, int V, int F>
static void add_tile(vf* acc, int64_t lda, const Operands<T>& in, const Span& span) {
  vf a[R][V];
  SPARROW_UNROLL for (int r = 0; r < R; ++r) SPARROW_UNROLL for (int v = 0; v < V; ++v) a[r][v] =
      span.begin == 0 ? vf{} : acc[r * lda + v];
  int64_t i = add_lines<T, R, V, F>(a, in, span.begin, span.turn, span.ahead);
  i = add_lines<T, R, V, F>(a, in, i, span.end, span.ahead_after);
  SPARROW_UNROLL for (int r = 0; r < R; ++r) SPARROW_UNROLL for (int v = 0; v < V; ++v) acc[r * lda + v] = a[r][v];
  if (i < span.end) add_rest(acc, lda, in, R, V, i, span.end);
}

// One of several parts, which share the rows to fetch.
template <class T, int kMost>
SPARROW_INLINE void add_part(int64_t vectors, vf* acc, int64_t lda, const Operands<T>& in, const Span& span) {
  constexpr int kGroup = weight_rows(kMost);
  if (vectors == kMost) return add_tile<T, kGroup, kMost, kGroup / 2>(acc, lda, in, span);
  add_tile<T, kGroup, kMost - 1, kGroup / 2>(acc, lda, in, span);
}

template <class T>
SPARROW_INLINE void add_any_part(const Parts& parts, int64_t vectors, vf* acc, int64_t lda, const Operands<T>& in,
                                 const Span& span) {
  const int64_t most = parts.most();
  if (parts.count > 1) {
    if (most == kMaxVectors) return add_part<T, kMaxVectors>(vectors, acc, lda, in, span);
    return add_part<T, kMaxVectors - 1>(vectors, acc, lda, in, span);
  }
  if (vectors == 1) return add_tile<T, weight_rows(1), 1, weight_rows(1)>(acc, lda, in, span);
  if (vectors == 2) return add_tile<T, weight_rows(2), 2, weight_rows(2)>(acc, lda, in, span);
  if (vectors == 3) return add_tile<T, weight_rows(3), 3, weight_rows(3)>(acc, lda, in, span);
  if constexpr (kMaxVectors == 4) add_tile<T, weight_rows(4), 4, weight_rows(4)>(acc, lda, in, span);
}

// Rows of a group of `rows` that part `part` fetches: its share, one again and again where there are more parts.
template <class T>
SPARROW_INLINE void share_fetches(Operands<T>& in, int64_t rows, const Parts& parts, int64_t part) {
  const int64_t first = rows * part / parts.count, last = rows * (part + 1) / parts.count - 1;
  for (int64_t r = 0; r < rows; ++r) in.fetch[r] = in.w[first + r < last ? first + r : last > first ? last : first];
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
  constexpr int64_t kElement = sizeof(T), kVector = kTokens * Step<T>::kChunk;
  const Parts parts(p.rows);
  const int64_t vectors = parts.vectors, group = weight_rows(parts.most());
  const int64_t computed = (p.outputs + group - 1) / group * group;
  const int64_t steps = (p.width + Step<T>::kChunk - 1) / Step<T>::kChunk;
  const int64_t block = parts.count > 1 ? kBlockBytes / kElement : p.width > 0 ? p.width : 1;
  const int64_t ahead = kPrefetchBytes / kElement < p.width ? kPrefetchBytes / kElement : p.width;
  vf acc[kSkinnyTile * ((kSkinnyRows + kTokens - 1) / kTokens)];
  Operands<T> in;
  for (int64_t begin = 0; begin < p.width || begin == 0; begin += block) {
    const int64_t end = begin + block < p.width ? begin + block : p.width;
    // One block: on in the same rows, at their end to the next group. Several: this group's next block.
    Span span{begin, end - ahead, end, ahead, group * p.ldw - p.width + ahead};
    if (parts.count > 1) span = {begin, end, end, end < p.width ? block : computed * p.ldw - begin, 0};
    for (int64_t o = 0; o < p.outputs; o += group) {
      for (int64_t r = 0; r < kRows; ++r)  // beyond the last output: the last row again, its result dropped
        in.w[r] = p.w + (o + r < p.outputs ? o + r : p.outputs - 1) * p.ldw;
      for (int64_t part = 0; part < parts.count; ++part) {
        const int64_t v = parts.first(part), count = parts.first(part + 1) - v;
        in.x = p.x + v * kVector * steps;
        in.ldx = count * kVector;
        share_fetches(in, group, parts, part);
        add_any_part(parts, count, acc + o * vectors + v, vectors, in, span);
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
