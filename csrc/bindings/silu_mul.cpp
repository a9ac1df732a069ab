#include "ops/silu_mul.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "bindings/rows.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "silu_mul";

void check_arguments(const Tensor& gate, const Tensor& up) {
  check_tensors(kOp, {{"gate", gate}, {"up", up}});
  const Arg a{kOp, "gate", gate}, b{kOp, "up", up};
  a.floating();
  b.same_dtype(a);
  check_rows(a);
  check_shape_of(b, a);
}

// gate, up: with even rows.
SiluMulParams make_params(const Tensor& gate, const Tensor& up, const Tensor& out) {
  return {gate.const_data_ptr(),     up.const_data_ptr(), out.mutable_data_ptr(), rows_in(gate),
          gate.size(gate.dim() - 1), row_step(gate),      row_step(up),           dtype_of(gate)};
}

}  // namespace

Tensor silu_mul_op_cpu(const Tensor& gate, const Tensor& up) {
  check_arguments(gate, up);
  const Tensor out = empty_like(kOp, gate), a = with_even_rows(gate), b = with_even_rows(up);
  const SiluMulParams p = make_params(a, b, out);
  run_items(silu_mul_cpu, p, p.rows * silu_pieces(p.width), /*grain=*/8);
  return out;
}

#if defined(SPARROW_CUDA)
Tensor silu_mul_op_cuda(const Tensor& gate, const Tensor& up) {
  check_arguments(gate, up);
  const Tensor out = empty_like(kOp, gate), a = with_even_rows(gate), b = with_even_rows(up);
  const OnDevice on(kOp, gate);
  check_launch(kOp, silu_mul_cuda(make_params(a, b, out), on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) { m.def("silu_mul(Tensor gate, Tensor up) -> Tensor"); }
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("silu_mul", &sparrow::silu_mul_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("silu_mul", &sparrow::silu_mul_op_cuda)); }
#endif
