#include "ops/lm_head_topk.h"

#include "bindings/checks.h"
#include "bindings/linear.h"
#include "bindings/topk.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "lm_head_topk";
constexpr int64_t kRowsPerGemm = 128;  // bounds the logits in memory: 39 MB at V = 152064 in bf16

void skinny(const Tensor& h, const RowLayout& rows, const Tensor& weight, const std::optional<Tensor>& id_map,
            int64_t k, const TopkResult& result) {
  const int64_t width = h.size(h.dim() - 1), vocab = weight.size(0);
  const Tensor packed = empty(h, {packed_bytes(rows.rows, width)}, ScalarType::Byte);
  const TopkScratch scratch(h, rows.rows, (vocab + kLmHeadChunk - 1) / kLmHeadChunk, k);
  LmHeadTopkParams p;
  p.h = h.const_data_ptr();
  p.inner = rows.inner, p.outer_stride = rows.outer_stride, p.inner_stride = rows.inner_stride;
  p.weight = weight.const_data_ptr(), p.weight_stride = weight.stride(0);
  p.packed = align_packed(packed.mutable_data_ptr());
  p.rows = rows.rows, p.width = width, p.vocab = vocab;
  p.dtype = dtype_of(h);
  p.parts = scratch.parts;
  run_items(lm_head_pack_cpu, p, pack_items(rows.rows), /*grain=*/4);
  const int64_t work = rows.rows * width * kLmHeadChunk;  // multiply-adds of an item
  run_items(lm_head_topk_cpu, p, scratch.parts.chunks, 1 + (1 << 19) / (work + 1));
  topk_merge(scratch.parts, id_map, result, 0, rows.rows);
}

void with_library(const Tensor& h, const RowLayout& rows, const Tensor& weight, const std::optional<Tensor>& id_map,
                  int64_t k, const TopkResult& result) {
  const int64_t width = h.size(h.dim() - 1), vocab = weight.size(0), chunks = (vocab + kTopkChunk - 1) / kTopkChunk;
  const int64_t shape[] = {rows.rows, width};
  const Tensor x = torch::stable::reshape(h, {shape, 2});
  const Tensor logits = empty(h, {kRowsPerGemm, vocab}, h.scalar_type());
  const TopkScratch scratch(h, kRowsPerGemm, chunks, k);
  for (int64_t begin = 0; begin < rows.rows; begin += kRowsPerGemm) {
    const int64_t count = rows.rows - begin < kRowsPerGemm ? rows.rows - begin : kRowsPerGemm;
    library_linear(rows_of(logits, 0, count), rows_of(x, begin, count), weight, std::nullopt);
    const TopkLseParams p{logits.const_data_ptr(), count, 0, vocab, vocab, dtype_of(h), scratch.parts};
    run_items(topk_lse_cpu, p, count * chunks, /*grain=*/4);
    topk_merge(scratch.parts, id_map, result, begin, count);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> lm_head_topk_op_cpu(const Tensor& h, const Tensor& weight, int64_t k,
                                                       const std::optional<Tensor>& id_map) {
  const Arg arg{kOp, "h", h}, weight_arg{kOp, "weight", weight};
  weight_arg.same_device(arg);
  arg.floating();
  weight_arg.same_dtype(arg).dim(2).last_dense();
  const RowLayout rows = row_layout(arg);
  weight_arg.size(1, h.size(h.dim() - 1), "E, the last dimension of h");
  check_topk(kOp, arg, weight.size(0), k, id_map);
  const TopkResult result = topk_outputs(h, k);
  if (rows.rows == 0) return result.tuple();
  if (rows.rows <= kSkinnyRows)
    skinny(h, rows, weight, id_map, k, result);
  else
    with_library(h, rows, weight, id_map, k, result);
  return result.tuple();
}

}  // namespace sparrow

STABLE_TORCH_LIBRARY_FRAGMENT(sparrow, m) {
  m.def("lm_head_topk(Tensor h, Tensor weight, int k, Tensor? id_map=None) -> (Tensor logp, Tensor ids, Tensor lse)");
}
STABLE_TORCH_LIBRARY_IMPL(sparrow, CPU, m) { m.impl("lm_head_topk", TORCH_BOX(&sparrow::lm_head_topk_op_cpu)); }
