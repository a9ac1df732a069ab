// Rotate-half rotary embedding of kVec pairs of one head: y[d] = x[d] cos[d] - x[d + D/2] sin[d], y[d + D/2] =
// x[d + D/2] cos[d] + x[d] sin[d]. Two products and one sum, each rounded (never fused), then one rounding to T: the
// bits of csrc/cpu/rope.h and of PyTorch's own composition in float32.
#pragma once
#include "kernels/portable.cuh"
#include "ops/common.h"

namespace sparrow {

// kVec elements moved as one: 16 bytes, or a single element.
template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T x[kVec];
};

template <class T>
constexpr int kPackOf16Bytes = 16 / static_cast<int>(sizeof(T));

template <class T, int kVec>
__device__ __forceinline__ Pack<T, kVec> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, kVec>*>(p);
}
template <class T, int kVec>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, kVec>& x) {
  *reinterpret_cast<Pack<T, kVec>*>(p) = x;
}

// low, high: elements d.. and d + D/2.. of a head; cos_sin: the row's cos at d, its sin half = D/2 further.
template <class T, int kVec>
__device__ __forceinline__ void rope_pairs(Pack<T, kVec>& low, Pack<T, kVec>& high, const float* cos_sin, int half) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float a = static_cast<float>(low.x[i]), b = static_cast<float>(high.x[i]);
    const float c = cos_sin[i], s = cos_sin[half + i];
    low.x[i] = static_cast<T>(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
    high.x[i] = static_cast<T>(__fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
  }
}

// Host side: base pointer and every stride (in elements) of a tensor allow moves of 16 bytes.
inline bool aligned16(const void* base, int64_t element_size, int64_t s0, int64_t s1 = 0, int64_t s2 = 0) {
  const int64_t all =
      reinterpret_cast<intptr_t>(base) | (s0 * element_size) | (s1 * element_size) | (s2 * element_size);
  return all % 16 == 0;
}

inline int64_t size_of(DType t) { return t == DType::f32 ? 4 : 2; }

}  // namespace sparrow
