#include "ops/skinny_linear.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "bindings/linear.h"
#include "bindings/rows.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "skinny_linear";

struct LinearArgs {
  const Tensor& x;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
};

void check_arguments(const LinearArgs& a) {
  const Arg x{kOp, "x", a.x}, weight{kOp, "weight", a.weight};
  x.floating();
  weight.same_dtype(x).dim(2);
  check_rows(x);
  weight.size(1, a.x.size(a.x.dim() - 1), "K, the last dimension of x").last_dense();
  if (!a.bias) return;
  const Arg bias{kOp, "bias", *a.bias};
  bias.same_dtype(x).dim(1).size(0, a.weight.size(0), "rows of weight").contiguous();
}

// Returns the step between rows of out.
int64_t check_out(const LinearArgs& a, const Tensor& out, const Tensor& workspace) {
  const Arg x{kOp, "x", a.x}, arg{kOp, "out", out};
  arg.same_dtype(x).dim(a.x.dim());
  for (int64_t d = 0; d + 1 < a.x.dim(); ++d) arg.size(d, a.x.size(d), "that of x");
  arg.size(out.dim() - 1, a.weight.size(0), "rows of weight").last_dense();
  const int64_t step = row_step(out), rows = rows_in(a.x);
  if (rows > 1 && step < 0)
    refuse(kOp, "the rows of out must lie one step apart in memory, got strides ", strides_of(out));
  const int64_t bytes = check_bytes(kOp, skinny_linear_workspace_bytes(rows, a.weight.size(1), a.weight.size(0)));
  take_bytes(kOp, workspace, bytes, /*alignment=*/1);  // aligned in make_params
  return step;
}

// x: a.x, or its copy where row_step(a.x) < 0.
SkinnyLinearParams make_params(const LinearArgs& a, const Tensor& x, const Tensor& out, int64_t out_step,
                               void* scratch) {
  SkinnyLinearParams p{};
  p.x = x.const_data_ptr();
  p.weight = a.weight.const_data_ptr();
  p.bias = a.bias ? a.bias->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.packed = align_packed(scratch);
  p.rows = rows_in(x);
  p.width = a.weight.size(1);
  p.outputs = a.weight.size(0);
  p.x_stride = row_step(x);
  p.weight_stride = a.weight.stride(0);
  p.out_stride = out_step;
  p.dtype = dtype_of(x);
  p.partial = static_cast<float*>(p.packed);
  return p;
}

void run(const LinearArgs& a, const Tensor& out, int64_t out_step, void* scratch) {
  const Tensor x = with_even_rows(a.x);
  const SkinnyLinearParams all = make_params(a, x, out, out_step, scratch);
  const int64_t element = all.dtype == DType::f32 ? 4 : 2;
  SkinnyLinearParams p = all;
  for (int64_t begin = 0; begin < all.rows && all.outputs > 0; begin += kSkinnyRows) {
    p.rows = all.rows - begin < kSkinnyRows ? all.rows - begin : kSkinnyRows;
    p.x = static_cast<const char*>(all.x) + begin * all.x_stride * element;
    p.out = static_cast<char*>(all.out) + begin * all.out_stride * element;
    run_items(skinny_pack_cpu, p, pack_items(p.rows), /*grain=*/4);
    multiply_packed(p);
  }
}

// out [..., N] and scratch of the functional form.
std::pair<Tensor, Tensor> allocate(const LinearArgs& a) {
  int64_t shape[8];
  for (int64_t d = 0; d + 1 < a.x.dim(); ++d) shape[d] = a.x.size(d);
  shape[a.x.dim() - 1] = a.weight.size(0);
  const int64_t bytes = skinny_linear_workspace_bytes(rows_in(a.x), a.weight.size(1), a.weight.size(0));
  return {empty(kOp, a.x, shape, a.x.dim(), a.x.scalar_type()), empty(kOp, a.x, {bytes}, ScalarType::Byte)};
}

}  // namespace

int64_t skinny_linear_workspace_size_op(int64_t rows, int64_t width, int64_t outputs) {
  constexpr const char* op = "skinny_linear_workspace_size";
  check_count(op, "M", rows);
  check_count(op, "K", width);
  check_count(op, "N", outputs);
  return check_bytes(op, skinny_linear_workspace_bytes(rows, width, outputs));
}

Tensor skinny_linear_op_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_tensors(kOp, {{"x", x}, {"weight", weight}, {"bias", bias}});
  const LinearArgs a{x, weight, bias};
  check_arguments(a);
  const auto [out, scratch] = allocate(a);
  run(a, out, weight.size(0), scratch.mutable_data_ptr());
  return out;
}

void skinny_linear_out_op_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              const Tensor& out, const Tensor& workspace) {
  check_tensors(
      kOp, {{"x", x}, {"weight", weight}, {"bias", bias}, {"out", out, kWritten}, {"workspace", workspace, kWritten}});
  const LinearArgs a{x, weight, bias};
  check_arguments(a);
  const int64_t step = check_out(a, out, workspace);
  run(a, out, step, workspace.mutable_data_ptr());
}

#if defined(SPARROW_CUDA)
namespace {

void run_cuda(const LinearArgs& a, const Tensor& out, int64_t out_step, void* scratch) {
  const Tensor x = with_even_rows(a.x);
  if (dtype_of(x) == DType::f32) check_grid(kOp, "M in float32", rows_in(x), 65535 * kPlainRows);
  check_grid(kOp, "K", a.weight.size(1), 65535 * kSkinnySplit);
  const OnDevice on(kOp, a.x);
  check_launch(kOp, skinny_linear_cuda(make_params(a, x, out, out_step, scratch), on.stream));
}

}  // namespace

Tensor skinny_linear_op_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_tensors(kOp, {{"x", x}, {"weight", weight}, {"bias", bias}});
  const LinearArgs a{x, weight, bias};
  check_arguments(a);
  const auto [out, scratch] = allocate(a);
  run_cuda(a, out, weight.size(0), scratch.mutable_data_ptr());
  return out;
}

void skinny_linear_out_op_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                               const Tensor& out, const Tensor& workspace) {
  check_tensors(
      kOp, {{"x", x}, {"weight", weight}, {"bias", bias}, {"out", out, kWritten}, {"workspace", workspace, kWritten}});
  const LinearArgs a{x, weight, bias};
  check_arguments(a);
  const int64_t step = check_out(a, out, workspace);
  run_cuda(a, out, step, workspace.mutable_data_ptr());
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("skinny_linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("skinny_linear_out(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def("skinny_linear_workspace_size(int M, int K, int N) -> int");
}
SPARROW_CPU_IMPL(m) {
  m.impl(SPARROW_BOX("skinny_linear", &sparrow::skinny_linear_op_cpu));
  m.impl(SPARROW_BOX("skinny_linear_out", &sparrow::skinny_linear_out_op_cpu));
}
SPARROW_COMPOSITE_IMPL(m) {
  m.impl(SPARROW_BOX("skinny_linear_workspace_size", &sparrow::skinny_linear_workspace_size_op));
}
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) {
  m.impl(SPARROW_BOX("skinny_linear", &sparrow::skinny_linear_op_cuda));
  m.impl(SPARROW_BOX("skinny_linear_out", &sparrow::skinny_linear_out_op_cuda));
}
#endif
