#include "ops/argmax_rows.h"

#include "bindings/checks.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#include "kernels/argmax_rows.cuh"
#endif

namespace sparrow {
namespace {

constexpr const char* kOp = "argmax_rows";
constexpr int64_t kGrainElements = 1 << 18;  // about 10 us of one thread

Tensor allocate(const Tensor& logits, ArgmaxRowsParams& p) {
  const Arg arg{kOp, "logits", logits};
  arg.floating();
  const int64_t d = logits.dim();
  check_that(d == 2 || d == 3, kOp, "logits must have 2 or 3 dimensions, got shape ", shape_of(logits));
  check_that(logits.size(d - 1) > 0, kOp, "logits must have a vocabulary of at least 1, got shape ", shape_of(logits));
  arg.last_dense();
  p.dtype = dtype_of(logits);
  p.rows0 = d == 3 ? logits.size(0) : 1, p.rows1 = logits.size(d - 2), p.vocab = logits.size(d - 1);
  p.stride0 = d == 3 ? logits.stride(0) : 0, p.stride1 = logits.stride(d - 2);
  Tensor out =
      d == 3 ? empty(logits, {p.rows0, p.rows1}, ScalarType::Long) : empty(logits, {p.rows1}, ScalarType::Long);
  p.logits = logits.const_data_ptr();
  p.out = out.mutable_data_ptr<int64_t>();
  return out;
}

}  // namespace

Tensor argmax_rows_op_cpu(const Tensor& logits) {
  ArgmaxRowsParams p;
  Tensor out = allocate(logits, p);
  run_items(argmax_rows_cpu, p, p.rows0 * p.rows1, /*grain=*/1 + kGrainElements / p.vocab);
  return out;
}

#if defined(SPARROW_CUDA)
Tensor argmax_rows_op_cuda(const Tensor& logits) {
  const DeviceGuard guard(logits.get_device_index());
  ArgmaxRowsParams p;
  Tensor out = allocate(logits, p);
  check_that(p.vocab <= UINT32_MAX, kOp, "logits must have a vocabulary below 2^32, got shape ", shape_of(logits));
  const Tensor partial = empty(logits, {p.rows0 * p.rows1 * argmax_chunks(p.vocab)}, ScalarType::Long);
  uint64_t* scratch = reinterpret_cast<uint64_t*>(partial.mutable_data_ptr<int64_t>());
  check_launch(kOp, argmax_rows_cuda(p, scratch, current_stream(logits)));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) { m.def("argmax_rows(Tensor logits) -> Tensor"); }
SPARROW_CPU_IMPL(m) { m.impl("argmax_rows", TORCH_BOX(&sparrow::argmax_rows_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl("argmax_rows", TORCH_BOX(&sparrow::argmax_rows_op_cuda)); }
#endif
