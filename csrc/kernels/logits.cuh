// What the kernels over rows of logits share: 16-byte loads, integer keys in the order of the floats, warp reductions,
// the choice of element type.
#pragma once
#include "kernels/portable.cuh"
#include "kernels/ptx.cuh"
#include "ops/common.h"

namespace sparrow {

constexpr unsigned kAllLanes = 0xffffffffu;
template <class T>
constexpr int kVec = 16 / static_cast<int>(sizeof(T));  // elements of a 16-byte load

// Row r is at (r / inner) * outer_stride + (r % inner) * inner_stride.
struct Rows {
  int64_t inner, outer_stride, inner_stride;  // strides in elements
  __device__ __forceinline__ int64_t at(int64_t row) const {
    return row / inner * outer_stride + row % inner * inner_stride;
  }
};

template <class T>
__device__ __forceinline__ float to_float(T x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(x);
  else
    return __half2float(x);
}
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16(x);
  else
    return __float2half(x);
}
// The two elements of a 32-bit word, or its one.
template <class T>
__device__ __forceinline__ void unpack_word(uint32_t word, float* v) {
  if constexpr (std::is_same_v<T, float>) {
    v[0] = __uint_as_float(word);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    v[0] = __uint_as_float(word << 16);
    v[1] = __uint_as_float(word & 0xffff0000u);
  } else {
    __half2 h;
    memcpy(&h, &word, 4);
    v[0] = __low2float(h);
    v[1] = __high2float(h);
  }
}

// Elements [0, kVec) from x on; those from `left` on are -inf. `aligned`: x is a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void load_vec(float (&v)[kVec<T>], const T* x, int64_t left, bool aligned) {
  if (aligned && left >= kVec<T>) {
    const uint4 w = *reinterpret_cast<const uint4*>(x);
    constexpr int kStep = kVec<T> / 4;
    unpack_word<T>(w.x, v);
    unpack_word<T>(w.y, v + kStep);
    unpack_word<T>(w.z, v + 2 * kStep);
    unpack_word<T>(w.w, v + 3 * kStep);
  } else {
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) v[j] = j < left ? to_float(x[j]) : -INFINITY;
  }
}
__device__ __forceinline__ bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Unsigned integers in the order of the floats; -0 counts as +0; every number's is above 0, NaN's is `nan`.
__device__ __forceinline__ uint32_t ordered(float x, uint32_t nan = 0) {
  if (x != x) return nan;
  const uint32_t bits = __float_as_uint(x + 0.f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
// (value, index) as one integer: larger values first, of equal ones the lower index. 0 = nothing.
__device__ __forceinline__ uint64_t pair_key(uint32_t value, uint32_t index) {
  return static_cast<uint64_t>(value) << 32 | static_cast<uint32_t>(~index);
}
__device__ __forceinline__ uint32_t key_value(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
__device__ __forceinline__ uint32_t key_index(uint64_t key) { return ~static_cast<uint32_t>(key); }

__device__ __forceinline__ uint64_t warp_max(uint64_t key) {
  const uint32_t high = __reduce_max_sync(kAllLanes, key_value(key));
  const uint32_t low = __reduce_max_sync(kAllLanes, key_value(key) == high ? static_cast<uint32_t>(key) : 0u);
  return static_cast<uint64_t>(high) << 32 | low;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

template <class T>
struct Element {
  using type = T;
};
// f(Element<T>{}) for the element type.
template <class F>
cudaError_t with_dtype(DType dtype, const F& f) {
  if (dtype == DType::f32) return f(Element<float>{});
  if (dtype == DType::bf16) return f(Element<__nv_bfloat16>{});
  return f(Element<__half>{});
}

}  // namespace sparrow
