#include "ops/topk_lse.h"

#include "bindings/checks.h"
#include "bindings/topk.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "topk_lse";

}  // namespace

std::tuple<Tensor, Tensor, Tensor> topk_lse_op_cpu(const Tensor& logits, int64_t k,
                                                   const std::optional<Tensor>& id_map) {
  const Arg arg{kOp, "logits", logits};
  arg.floating();
  const RowLayout rows = row_layout(arg);
  const int64_t vocab = logits.size(logits.dim() - 1);
  check_topk(kOp, arg, vocab, k, id_map);
  const TopkResult result = topk_outputs(logits, k);
  if (rows.rows == 0) return result.tuple();
  const TopkScratch scratch(logits, rows.rows, (vocab + kTopkChunk - 1) / kTopkChunk, k);
  TopkLseParams p;
  p.logits = logits.const_data_ptr();
  p.inner = rows.inner, p.outer_stride = rows.outer_stride, p.inner_stride = rows.inner_stride;
  p.vocab = vocab;
  p.dtype = dtype_of(logits);
  p.parts = scratch.parts;
  run_items(topk_lse_cpu, p, rows.rows * scratch.parts.chunks, /*grain=*/4);
  topk_merge(scratch.parts, id_map, result, 0, rows.rows);
  return result.tuple();
}

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("topk_lse(Tensor logits, int k, Tensor? id_map=None) -> (Tensor logp, Tensor ids, Tensor lse)");
}
SPARROW_CPU_IMPL(m) { m.impl("topk_lse", TORCH_BOX(&sparrow::topk_lse_op_cpu)); }
