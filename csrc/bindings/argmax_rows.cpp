#include "ops/argmax_rows.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "argmax_rows";
constexpr int64_t kGrainElements = 1 << 18;  // about 10 us of one thread

Tensor allocate(const Tensor& logits, ArgmaxRowsParams& p) {
  check_tensors(kOp, {{"logits", logits}});
  const Arg arg{kOp, "logits", logits};
  arg.floating();
  const int64_t d = logits.dim();
  if (d != 2 && d != 3) refuse(kOp, "logits must have 2 or 3 dimensions, got shape ", shape_of(logits));
  p.rows0 = d == 3 ? logits.size(0) : 1;
  p.rows1 = logits.size(d - 2);
  p.vocab = logits.size(d - 1);
  if (p.vocab == 0) refuse(kOp, "logits must have a vocabulary of at least 1, got shape ", shape_of(logits));
  arg.last_dense();
  p.dtype = dtype_of(logits);
  p.stride0 = d == 3 ? logits.stride(0) : 0;
  p.stride1 = logits.stride(d - 2);
  Tensor out = d == 3 ? empty(kOp, logits, {p.rows0, p.rows1}, ScalarType::Long)
                      : empty(kOp, logits, {p.rows1}, ScalarType::Long);
  p.logits = logits.const_data_ptr();
  p.out = out.mutable_data_ptr<int64_t>();
  return out;
}

}  // namespace

Tensor argmax_rows_op_cpu(const Tensor& logits) {
  ArgmaxRowsParams p{};
  Tensor out = allocate(logits, p);
  run_items(argmax_rows_cpu, p, p.rows0 * p.rows1, /*grain=*/1 + kGrainElements / p.vocab);
  return out;
}

#if defined(SPARROW_CUDA)
Tensor argmax_rows_op_cuda(const Tensor& logits) {
  ArgmaxRowsParams p{};
  Tensor out = allocate(logits, p);
  const Tensor partial = empty(kOp, logits, {p.rows0 * p.rows1 * argmax_chunks(p.vocab)}, ScalarType::Long);
  uint64_t* scratch = reinterpret_cast<uint64_t*>(partial.mutable_data_ptr<int64_t>());
  const OnDevice on(kOp, logits);
  check_launch(kOp, argmax_rows_cuda(p, scratch, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) { m.def("argmax_rows(Tensor logits) -> Tensor"); }
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("argmax_rows", &sparrow::argmax_rows_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("argmax_rows", &sparrow::argmax_rows_op_cuda)); }
#endif
