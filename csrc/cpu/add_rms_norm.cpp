#include "ops/add_rms_norm.h"

#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int kSums = 4;  // independent chains of additions

template <class T>
void norm_row(const T* x, const T* residual, const T* weight, T* sum, T* out, int64_t width, float eps) {
  const auto at = [&](int64_t i) {
    if (!residual) return load(x + i);
    const vf v = load(x + i) + load(residual + i);
    store(sum + i, v);
    return rounded<T>(v);
  };
  const auto tail = [&](int64_t i, int n) {
    if (!residual) return load_n(x + i, n);
    const vf v = load_n(x + i, n) + load_n(residual + i, n);
    store_n(sum + i, v, n);
    return rounded<T>(v);
  };
  vf squares[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= width; i += kSums * kLanes) SPARROW_UNROLL for (int s = 0; s < kSums; ++s) {
      const vf v = at(i + s * kLanes);
      squares[s] = fma(v, v, squares[s]);
    }
  for (; i < width; i += kLanes) {
    const vf v = i + kLanes <= width ? at(i) : tail(i, static_cast<int>(width - i));
    squares[0] = fma(v, v, squares[0]);
  }
  const float mean = reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(width);
  const vf scale = splat(1.f / std::sqrt(mean + eps));
  const T* row = residual ? sum : x;
  for (i = 0; i + kLanes <= width; i += kLanes) store(out + i, rounded<T>(load(row + i) * scale) * load(weight + i));
  const int left = static_cast<int>(width - i);
  store_n(out + i, rounded<T>(load_n(row + i, left) * scale) * load_n(weight + i, left), left);
}

template <class T>
void run(const AddRmsNormParams& p, int64_t begin, int64_t end) {
  const T *x = static_cast<const T*>(p.x), *residual = static_cast<const T*>(p.residual);
  for (int64_t m = begin; m < end; ++m)
    norm_row(x + m * p.x_stride, residual ? residual + m * p.residual_stride : nullptr, static_cast<const T*>(p.weight),
             static_cast<T*>(p.sum) + (residual ? m * p.width : 0), static_cast<T*>(p.out) + m * p.width, p.width,
             p.eps);
}

}  // namespace

void add_rms_norm_cpu(const AddRmsNormParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return run<float>(p, begin, end);
  if (p.dtype == DType::bf16) return run<bf16_t>(p, begin, end);
  run<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
