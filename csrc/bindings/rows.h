// [..., columns] seen as [rows, columns].
#pragma once
#include "bindings/checks.h"

namespace sparrow {

// The step from row to row; -1 where rows are not dense or no single step leads through all of them.
inline int64_t row_step(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  if (t.size(last) > 1 && t.stride(last) != 1) return -1;
  int64_t step = t.size(last), next = -1;  // `next`: the stride a further dimension must have
  for (int64_t d = last; d-- > 0;) {
    if (t.size(d) == 0) return t.size(last);
    if (t.size(d) == 1) continue;
    if (next >= 0 && t.stride(d) != next) return -1;
    if (next < 0) step = t.stride(d);
    next = t.stride(d) * t.size(d);
  }
  return step;
}

inline int64_t rows_in(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  return rows;
}

// x, or its copy where row_step(x) < 0.
inline Tensor with_even_rows(const Tensor& x) { return row_step(x) < 0 ? torch::stable::contiguous(x) : x; }

// What an operator over rows takes: 1 to 8 dimensions.
inline void check_rows(const Arg& arg) {
  if (arg.t.dim() < 1 || arg.t.dim() > 8)
    refuse(arg.op, arg.name, " must have 1 to 8 dimensions, got shape ", shape_of(arg.t));
}

// The shape of `arg` is that of `like`.
inline void check_shape_of(const Arg& arg, const Arg& like) {
  arg.dim(like.t.dim());
  for (int64_t d = 0; d < like.t.dim(); ++d) {
    const std::string rule = std::string("that of ") + like.name;
    arg.size(d, like.t.size(d), rule.c_str());
  }
}

inline Tensor empty_like(const char* op, const Tensor& x) {
  int64_t shape[8];
  for (int64_t d = 0; d < x.dim(); ++d) shape[d] = x.size(d);
  return empty(op, x, shape, x.dim(), x.scalar_type());
}

}  // namespace sparrow
