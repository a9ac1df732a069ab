#include "ops/topk_lse.h"

#include "bindings/checks.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#endif
#include "bindings/topk.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "topk_lse";

struct Prepared {
  TopkLseParams params;  // without parts
  TopkResult result;
  int64_t rows;
};

Prepared prepare(const Tensor& logits, int64_t k, const std::optional<Tensor>& id_map) {
  const Arg arg{kOp, "logits", logits};
  arg.floating();
  const RowLayout rows = row_layout(arg);
  const int64_t vocab = logits.size(logits.dim() - 1);
  check_topk(kOp, arg, vocab, k, id_map);
  TopkLseParams p;
  p.logits = logits.const_data_ptr();
  p.inner = rows.inner, p.outer_stride = rows.outer_stride, p.inner_stride = rows.inner_stride;
  p.vocab = vocab;
  p.dtype = dtype_of(logits);
  return {p, topk_outputs(logits, k), rows.rows};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> topk_lse_op_cpu(const Tensor& logits, int64_t k,
                                                   const std::optional<Tensor>& id_map) {
  Prepared a = prepare(logits, k, id_map);
  if (a.rows == 0) return a.result.tuple();
  const TopkScratch scratch(logits, a.rows, (a.params.vocab + kTopkChunk - 1) / kTopkChunk, k);
  a.params.parts = scratch.parts;
  run_items(topk_lse_cpu, a.params, a.rows * scratch.parts.chunks, /*grain=*/4);
  topk_merge(scratch.parts, id_map, a.result, 0, a.rows);
  return a.result.tuple();
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor, Tensor> topk_lse_op_cuda(const Tensor& logits, int64_t k,
                                                    const std::optional<Tensor>& id_map) {
  const DeviceGuard guard(logits.get_device_index());
  const Prepared a = prepare(logits, k, id_map);
  if (a.rows == 0) return a.result.tuple();
  const TopkScratch scratch(logits, a.rows, topk_cuda_lists(a.params.vocab), k);
  topk_lse_rows_cuda(kOp, a.params, scratch.parts, id_map, a.result, 0, a.rows, current_stream(logits));
  return a.result.tuple();
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("topk_lse(Tensor logits, int k, Tensor? id_map=None) -> (Tensor logp, Tensor ids, Tensor lse)");
}
SPARROW_CPU_IMPL(m) { m.impl("topk_lse", TORCH_BOX(&sparrow::topk_lse_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl("topk_lse", TORCH_BOX(&sparrow::topk_lse_op_cuda)); }
#endif
