// One float vector for every instruction set, on the compilers' vector extension: `vf` has kLanes floats.
// Everything lives in the instruction set's own namespace, so that the linker can never put a wider
// instruction set's copy of an inline function into the baseline path (tools/abi_audit.py checks this).
// Sums are written with fma() and the compiler may not contract others: a row's bits do not depend on tiling.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(SPARROW_X86)
#include <immintrin.h>
#endif

#include "ops/common.h"

#define SPARROW_INLINE static inline __attribute__((always_inline))
#define SPARROW_UNROLL _Pragma("GCC unroll 16")

namespace sparrow {
namespace SPARROW_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));

SPARROW_INLINE vf splat(float x) { return x - vf{}; }  // x - 0 keeps -0 and NaN
SPARROW_INLINE vi as_int(vf x) { return reinterpret_cast<vi>(x); }
SPARROW_INLINE vf as_float(vi x) { return reinterpret_cast<vf>(x); }
SPARROW_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
SPARROW_INLINE vf max(vf a, vf b) { return a > b ? a : b; }  // b where either is NaN
SPARROW_INLINE vf min(vf a, vf b) { return a < b ? a : b; }

SPARROW_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// ---- scalar conversions (also the tails) ----
SPARROW_INLINE float to_f32(float x) { return x; }
SPARROW_INLINE float to_f32(bf16_t x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
SPARROW_INLINE float to_f32(f16_t x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, em = x.bits & 0x7fffu;
  uint32_t u = (em << 13) + (112u << 23);  // rebias 15 -> 127
  if (em >= 0x7c00u) u += 112u << 23;      // infinity, NaN
  float f;
  if (em < 0x0400u) {  // zero, subnormal: em * 2^-24 exactly
    f = static_cast<float>(em) * 5.9604644775390625e-8f;
    std::memcpy(&u, &f, 4);
  }
  u |= sign;
  std::memcpy(&f, &u, 4);
  return f;
#endif
}
template <class T>
SPARROW_INLINE T from_f32(float x);
template <>
inline __attribute__((always_inline)) float from_f32<float>(float x) {
  return x;
}
template <>
inline __attribute__((always_inline)) bf16_t from_f32<bf16_t>(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16_t{static_cast<uint16_t>((u >> 16) | 0x40u)};  // quiet NaN
  return bf16_t{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
inline __attribute__((always_inline)) f16_t from_f32<f16_t>(float x) {
#if defined(__F16C__)
  return f16_t{static_cast<uint16_t>(_cvtss_sh(x, 0))};
#else
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return f16_t{static_cast<uint16_t>(sign | 0x7e00u)};
  if (u >= 0x477ff000u) return f16_t{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (u < 0x38800000u) {                                                      // subnormal: round x * 2^24
    float f;
    std::memcpy(&f, &u, 4);
    f += 0.5f;  // ulp of 0.5f is 2^-24: the addition rounds to nearest even for us
    std::memcpy(&u, &f, 4);
    return f16_t{static_cast<uint16_t>(sign | (u - 0x3f000000u))};
  }
  u += 0xfffu + ((u >> 13) & 1u);
  return f16_t{static_cast<uint16_t>(sign | ((u - (112u << 23)) >> 13))};
#endif
}

// The compiler makes several shuffles of what is one instruction.
SPARROW_INLINE vu widened(vh h) {
#if defined(__AVX512F__)
  return reinterpret_cast<vu>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)));
#elif defined(__AVX2__)
  return reinterpret_cast<vu>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  return __builtin_convertvector(h, vu);
#endif
}
SPARROW_INLINE vh narrowed(vu u) {  // of lanes below 2^16
#if defined(__AVX512F__)
  return reinterpret_cast<vh>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(u)));
#elif defined(__AVX2__)
  const __m256i x = reinterpret_cast<__m256i>(u), halves = _mm256_packus_epi32(x, x);  // of each 128 bits, twice
  return reinterpret_cast<vh>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08)));
#else
  return __builtin_convertvector(u, vh);
#endif
}
// The bits of v as bfloat16 in the upper half of each lane, to nearest even; the lower half is anything. `as_bf16` is
// for any v; the other for NaNs whose lower half is zero: what sums and products make of bfloat16's NaNs.
SPARROW_INLINE vu nearest_bf16(vf v) {
  const vu u = reinterpret_cast<vu>(v);
  return u + 0x7fffu + ((u >> 16) & 1u);
}
SPARROW_INLINE vu as_bf16(vf v) { return v == v ? nearest_bf16(v) : reinterpret_cast<vu>(v) | 0x400000u; }
SPARROW_INLINE vf upper_half(vu bits) { return reinterpret_cast<vf>(bits & 0xffff0000u); }

// ---- vector loads and stores; p needs no alignment ----
SPARROW_INLINE vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SPARROW_INLINE vf load(const bf16_t* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<vf>(widened(h) << 16);
}
SPARROW_INLINE vf load(const f16_t* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vf v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_f32(p[i]);
  return v;
#endif
}
// The first n < kLanes elements; the other lanes are `fill`.
template <class T>
SPARROW_INLINE vf load_n(const T* p, int n, float fill = 0.f) {
  vf v = splat(fill);
  for (int i = 0; i < n; ++i) v[i] = to_f32(p[i]);
  return v;
}
SPARROW_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
SPARROW_INLINE void store(bf16_t* p, vf v) {
  const vh h = narrowed(as_bf16(v) >> 16);
  std::memcpy(p, &h, sizeof h);
}
SPARROW_INLINE void store(f16_t* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, v, 0));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = from_f32<f16_t>(v[i]);
#endif
}
template <class T>
SPARROW_INLINE void store_n(T* p, vf v, int n) {
  for (int i = 0; i < n; ++i) p[i] = from_f32<T>(v[i]);
}
// What storing v as T and loading it again leaves of it.
template <class T>
SPARROW_INLINE vf rounded(vf v) {
  if constexpr (sizeof(T) == 4) return v;
  if constexpr (std::is_same_v<T, bf16_t>) return upper_half(as_bf16(v));
  T as_stored[kLanes];
  store(as_stored, v);
  return load(as_stored);
}

// ---- across lanes, always in the same order ----
SPARROW_INLINE float reduce_add(vf v) {
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) v[i] += v[i + w];
  return v[0];
}
SPARROW_INLINE float reduce_max(vf v) {
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) v[i] = v[i] > v[i + w] ? v[i] : v[i + w];
  return v[0];
}

// e^x to about 1 ulp for x <= 88; 0 below -87.3 and for -inf. NaN is not kept: callers test for it.
SPARROW_INLINE vf exp(vf x) {
  const vf least = splat(-87.33654f);  // e^least is normal
  const vf y = max(min(x, splat(88.f)), least);
  const vf shifter = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const vf t = fma(y, splat(1.44269504088896341f), shifter), n = t - shifter;
  vf r = fma(n, splat(-0.693145751953125f), y);
  r = fma(n, splat(-1.428606765330187e-6f), r);
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.f);
  const vf scaled = as_float(as_int(p) + (as_int(t) << 23));  // p * 2^n, n from the low bits of t
  return x < least ? vf{} : scaled;
}

// The natural logarithm of a normal positive x to about 1 ulp; near 1 of x - 1, relatively.
SPARROW_INLINE vf log(vf x) {
  const vi bits = as_int(x), e = (bits - 0x3f3504f3) >> 23;  // x = m 2^e, m in [sqrt(1/2), sqrt(2))
  const vf f = as_float(bits - (e << 23)) - splat(1.f), z = f * f, n = __builtin_convertvector(e, vf);
  vf p = splat(7.0376836292e-2f);
  p = fma(p, f, splat(-1.1514610310e-1f));
  p = fma(p, f, splat(1.1676998740e-1f));
  p = fma(p, f, splat(-1.2420140846e-1f));
  p = fma(p, f, splat(1.4249322787e-1f));
  p = fma(p, f, splat(-1.6668057665e-1f));
  p = fma(p, f, splat(2.0000714765e-1f));
  p = fma(p, f, splat(-2.4999993993e-1f));
  p = fma(p, f, splat(3.3333331174e-1f));
  vf y = fma(n, splat(-2.12194440e-4f), p * f * z);
  y = fma(z, splat(-.5f), y);
  return fma(n, splat(0.693359375f), f + y);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
