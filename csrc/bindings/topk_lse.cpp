#include "ops/topk_lse.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "bindings/topk.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "topk_lse";

struct Prepared {
  TopkLseParams params;  // without parts
  int64_t rows;
};

Prepared prepare(const Tensor& logits, int64_t k, const std::optional<Tensor>& id_map,
                 const std::optional<Tensor>& bias) {
  check_tensors(kOp, {{"logits", logits}, {"id_map", id_map}, {"bias", bias}});
  const Arg arg{kOp, "logits", logits};
  arg.floating();
  const RowLayout rows = row_layout(arg);
  const int64_t vocab = logits.size(logits.dim() - 1);
  check_topk(kOp, vocab, k, id_map);
  TopkLseParams p{};
  p.logits = logits.const_data_ptr();
  p.inner = rows.inner;
  p.outer_stride = rows.outer_stride;
  p.inner_stride = rows.inner_stride;
  p.vocab = vocab;
  p.dtype = dtype_of(logits);
  p.bias = check_bias(kOp, bias, logits, vocab);
  return {p, rows.rows};
}

void run(Prepared a, int64_t k, const std::optional<Tensor>& id_map, const TopkResult& result, void* scratch) {
  if (a.rows == 0) return;
  a.params.parts = topk_partials(scratch, a.rows, topk_chunks(a.params.vocab), k);
  run_items(topk_lse_cpu, a.params, a.rows * a.params.parts.chunks, /*grain=*/4);
  topk_merge(a.params.parts, id_map, result, 0, a.rows);
}

// The form that allocates; `run_on` is run or run_cuda.
template <class Run>
std::tuple<Tensor, Tensor, Tensor> allocate_and(const Run& run_on, const Tensor& logits, int64_t k,
                                                const std::optional<Tensor>& id_map,
                                                const std::optional<Tensor>& bias) {
  const Prepared a = prepare(logits, k, id_map, bias);
  const TopkResult result = topk_outputs(kOp, logits, k);
  const Tensor scratch = empty(kOp, logits, {topk_lse_workspace_bytes(a.rows, a.params.vocab, k)}, ScalarType::Byte);
  run_on(a, k, id_map, result, scratch.mutable_data_ptr());
  return result.tuple();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> topk_lse_op_cpu(const Tensor& logits, int64_t k, const std::optional<Tensor>& id_map,
                                                   const std::optional<Tensor>& bias) {
  return allocate_and(run, logits, k, id_map, bias);
}

#if defined(SPARROW_CUDA)
namespace {

void run_cuda(const Prepared& a, int64_t k, const std::optional<Tensor>& id_map, const TopkResult& result,
              void* scratch) {
  if (a.rows == 0) return;
  const OnDevice on(kOp, result.lse);
  const TopkPartials parts = topk_partials(scratch, a.rows, topk_cuda_lists(a.params.vocab), k);
  topk_lse_rows_cuda(kOp, a.params, parts, id_map, result, 0, a.rows, on.stream);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> topk_lse_op_cuda(const Tensor& logits, int64_t k,
                                                    const std::optional<Tensor>& id_map,
                                                    const std::optional<Tensor>& bias) {
  return allocate_and(run_cuda, logits, k, id_map, bias);
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "topk_lse(Tensor logits, int k, Tensor? id_map=None, Tensor? bias=None) -> (Tensor logp, Tensor ids, "
      "Tensor lse)");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("topk_lse", &sparrow::topk_lse_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("topk_lse", &sparrow::topk_lse_op_cuda)); }
#endif
