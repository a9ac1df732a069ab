#include "ops/add_rms_norm.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "bindings/rows.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "add_rms_norm";

struct NormArgs {
  const Tensor& x;
  const std::optional<Tensor>& residual;
  const Tensor& weight;
  double eps;
};

void check_arguments(const NormArgs& a) {
  check_tensors(kOp, {{"x", a.x}, {"residual", a.residual}, {"weight", a.weight}});
  const Arg x{kOp, "x", a.x}, weight{kOp, "weight", a.weight};
  x.floating();
  check_rows(x);
  if (a.residual) {
    const Arg residual{kOp, "residual", *a.residual};
    residual.same_dtype(x);
    check_shape_of(residual, x);
  }
  weight.same_dtype(x).dim(1).size(0, a.x.size(a.x.dim() - 1), "E, the last dimension of x").contiguous();
  check_that(a.eps >= 0 && a.eps < INFINITY, kOp, "eps must be at least 0 and finite, got ", a.eps);
}

// sum and out; sum has no elements where there is no residual.
std::tuple<Tensor, Tensor> allocate(const NormArgs& a) {
  Tensor sum = a.residual ? empty_like(kOp, a.x) : empty(kOp, a.x, {0}, a.x.scalar_type());
  return {std::move(sum), empty_like(kOp, a.x)};
}

// x, residual: with even rows.
AddRmsNormParams make_params(const NormArgs& a, const Tensor& x, const std::optional<Tensor>& residual,
                             const std::tuple<Tensor, Tensor>& results) {
  AddRmsNormParams p{};
  p.x = x.const_data_ptr();
  p.weight = a.weight.const_data_ptr();
  p.out = std::get<1>(results).mutable_data_ptr();
  p.rows = rows_in(x);
  p.width = x.size(x.dim() - 1);
  p.x_stride = row_step(x);
  p.eps = static_cast<float>(a.eps);
  p.dtype = dtype_of(x);
  if (residual) {
    p.residual = residual->const_data_ptr();
    p.residual_stride = row_step(*residual);
    p.sum = std::get<0>(results).mutable_data_ptr();
  }
  return p;
}

std::optional<Tensor> with_even_rows(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(sparrow::with_even_rows(*t)) : std::nullopt;
}

}  // namespace

std::tuple<Tensor, Tensor> add_rms_norm_op_cpu(const Tensor& x, const std::optional<Tensor>& residual,
                                               const Tensor& weight, double eps) {
  const NormArgs a{x, residual, weight, eps};
  check_arguments(a);
  auto results = allocate(a);
  const Tensor rows = sparrow::with_even_rows(x);
  const std::optional<Tensor> more = with_even_rows(residual);
  const AddRmsNormParams p = make_params(a, rows, more, results);
  if (p.width > 0) run_items(add_rms_norm_cpu, p, p.rows, /*grain=*/1 + (1 << 15) / p.width);
  return results;
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor> add_rms_norm_op_cuda(const Tensor& x, const std::optional<Tensor>& residual,
                                                const Tensor& weight, double eps) {
  const NormArgs a{x, residual, weight, eps};
  check_arguments(a);
  auto results = allocate(a);
  const Tensor rows = sparrow::with_even_rows(x);
  const std::optional<Tensor> more = with_even_rows(residual);
  const OnDevice on(kOp, x);
  check_launch(kOp, add_rms_norm_cuda(make_params(a, rows, more, results), on.stream));
  return results;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) { m.def("add_rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor, Tensor)"); }
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("add_rms_norm", &sparrow::add_rms_norm_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("add_rms_norm", &sparrow::add_rms_norm_op_cuda)); }
#endif
