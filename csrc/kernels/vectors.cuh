// 16 bytes of a row at a time, element by element where addresses or ends do not allow it.
#pragma once
#include "kernels/logits.cuh"

namespace sparrow {

// Elements [0, kVec) from x on, zeros from `left` on; and back.
template <class T>
__device__ __forceinline__ void load_zeros(float (&v)[kVec<T>], const T* x, int64_t left, bool aligned) {
  load_vec(v, x, left, aligned);
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) v[j] = j < left ? v[j] : 0.f;
}
template <class T>
__device__ __forceinline__ void store_vec(T* y, const float (&v)[kVec<T>], int64_t left, bool aligned) {
  T elements[kVec<T>];
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) elements[j] = from_float<T>(v[j]);
  if (aligned && left >= kVec<T>) {
    uint4 w;
    memcpy(&w, elements, 16);
    *reinterpret_cast<uint4*>(y) = w;
  } else {
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j)
      if (j < left) y[j] = elements[j];
  }
}

}  // namespace sparrow
