#include "ops/lm_head_topk.h"

#include "bindings/checks.h"
#include "bindings/linear.h"
#include "bindings/topk.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#include "kernels/lm_head_topk.cuh"
#include "kernels/topk_lse.cuh"
#endif

namespace sparrow {
namespace {

constexpr const char* kOp = "lm_head_topk";
constexpr int64_t kRowsPerGemm = 128;  // bounds the logits in memory: 39 MB at V = 152064 in bf16

struct LmHeadArgs {
  const Tensor& h;
  const RowLayout rows;
  const Tensor& weight;
  const std::optional<Tensor>& id_map;
  const int64_t k;
};

// Without packed, rows and parts.
LmHeadTopkParams make_params(const LmHeadArgs& a) {
  LmHeadTopkParams p{};
  p.h = a.h.const_data_ptr(), p.dtype = dtype_of(a.h);
  p.inner = a.rows.inner, p.outer_stride = a.rows.outer_stride, p.inner_stride = a.rows.inner_stride;
  p.weight = a.weight.const_data_ptr(), p.weight_stride = a.weight.stride(0);
  p.width = a.weight.size(1), p.vocab = a.weight.size(0);
  return p;
}

void skinny(const LmHeadArgs& a, const TopkResult& result) {
  LmHeadTopkParams p = make_params(a);
  const int64_t most = a.rows.rows < kSkinnyRows ? a.rows.rows : kSkinnyRows;
  const Tensor packed = empty(a.h, {packed_bytes(most, p.width)}, ScalarType::Byte);
  const TopkScratch scratch(a.h, most, (p.vocab + kLmHeadChunk - 1) / kLmHeadChunk, a.k);
  p.packed = align_packed(packed.mutable_data_ptr());
  p.parts = scratch.parts;
  for (p.first = 0; p.first < a.rows.rows; p.first += most) {
    p.rows = a.rows.rows - p.first < most ? a.rows.rows - p.first : most;
    run_items(lm_head_pack_cpu, p, pack_items(p.rows), /*grain=*/4);
    const int64_t work = p.rows * p.width * kLmHeadChunk;  // multiply-adds of an item
    run_items(lm_head_topk_cpu, p, p.parts.chunks, 1 + (1 << 19) / (work + 1));
    topk_merge(p.parts, a.id_map, result, p.first, p.rows);
  }
}

void with_library(const LmHeadArgs& a, const TopkResult& result) {
  const int64_t width = a.weight.size(1), vocab = a.weight.size(0), chunks = (vocab + kTopkChunk - 1) / kTopkChunk;
  const int64_t shape[] = {a.rows.rows, width};
  const Tensor x = torch::stable::reshape(a.h, {shape, 2});
  const Tensor logits = empty(a.h, {kRowsPerGemm, vocab}, a.h.scalar_type());
  const TopkScratch scratch(a.h, kRowsPerGemm, chunks, a.k);
  for (int64_t begin = 0; begin < a.rows.rows; begin += kRowsPerGemm) {
    const int64_t count = a.rows.rows - begin < kRowsPerGemm ? a.rows.rows - begin : kRowsPerGemm;
    library_linear(rows_of(logits, 0, count), rows_of(x, begin, count), a.weight, std::nullopt);
    const TopkLseParams p{logits.const_data_ptr(), count, 0, vocab, vocab, dtype_of(a.h), scratch.parts};
    run_items(topk_lse_cpu, p, count * chunks, /*grain=*/4);
    topk_merge(scratch.parts, a.id_map, result, begin, count);
  }
}

LmHeadArgs check_arguments(const Tensor& h, const Tensor& weight, int64_t k, const std::optional<Tensor>& id_map) {
  const Arg arg{kOp, "h", h}, weight_arg{kOp, "weight", weight};
  weight_arg.same_device(arg);
  arg.floating();
  weight_arg.same_dtype(arg).dim(2).last_dense();
  const RowLayout rows = row_layout(arg);
  weight_arg.size(1, h.size(h.dim() - 1), "E, the last dimension of h");
  check_topk(kOp, arg, weight.size(0), k, id_map);
  return {h, rows, weight, id_map, k};
}

#if defined(SPARROW_CUDA)
// Up to kSkinnyRows rows: logits in registers only.
void skinny_cuda(const LmHeadArgs& a, const TopkResult& result, cudaStream_t stream) {
  LmHeadTopkParams p = make_params(a);
  const TopkScratch scratch(a.h, a.rows.rows, lm_head_lists(p.vocab), a.k);
  p.first = 0, p.rows = a.rows.rows, p.parts = scratch.parts;
  check_launch(kOp, lm_head_topk_cuda(p, stream));
  check_launch(kOp, topk_merge_cuda(merge_params(scratch.parts, a.id_map, result, 0), p.rows, stream));
}

// More rows, and float32: logits in memory, `most` rows at a time, then topk_lse.
void through_logits_cuda(const LmHeadArgs& a, const TopkResult& result, cudaStream_t stream) {
  LmHeadTopkParams p = make_params(a);
  const bool plain = p.dtype == DType::f32;
  const int64_t most = a.rows.rows < kRowsPerGemm ? a.rows.rows : kRowsPerGemm;
  const Tensor logits = empty(a.h, {most, p.vocab}, a.h.scalar_type());
  const TopkScratch scratch(a.h, most, topk_cuda_lists(p.vocab), a.k);
  const int64_t shape[] = {a.rows.rows, p.width};
  const Tensor x = plain ? a.h : torch::stable::reshape(a.h, {shape, 2});
  for (p.first = 0; p.first < a.rows.rows; p.first += most) {
    p.rows = a.rows.rows - p.first < most ? a.rows.rows - p.first : most;
    if (plain)
      check_launch(kOp, lm_head_logits_cuda(p, static_cast<float*>(logits.mutable_data_ptr()), stream));
    else
      library_linear(rows_of(logits, 0, p.rows), rows_of(x, p.first, p.rows), a.weight, std::nullopt);
    const TopkLseParams topk{logits.const_data_ptr(), p.rows, 0, p.vocab, p.vocab, p.dtype, scratch.parts};
    topk_lse_rows_cuda(kOp, topk, scratch.parts, a.id_map, result, p.first, p.rows, stream);
  }
}
#endif

}  // namespace

std::tuple<Tensor, Tensor, Tensor> lm_head_topk_op_cpu(const Tensor& h, const Tensor& weight, int64_t k,
                                                       const std::optional<Tensor>& id_map) {
  const LmHeadArgs args = check_arguments(h, weight, k, id_map);
  const TopkResult result = topk_outputs(h, k);
  if (args.rows.rows == 0) return result.tuple();
  if (use_library(args.rows.rows, dtype_of(h))) {
    with_library(args, result);
  } else {
    skinny(args, result);
  }
  return result.tuple();
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor, Tensor> lm_head_topk_op_cuda(const Tensor& h, const Tensor& weight, int64_t k,
                                                        const std::optional<Tensor>& id_map) {
  const DeviceGuard guard(h.get_device_index());
  const LmHeadArgs args = check_arguments(h, weight, k, id_map);
  const TopkResult result = topk_outputs(h, k);
  if (args.rows.rows == 0) return result.tuple();
  if (args.rows.rows <= kSkinnyRows && dtype_of(h) != DType::f32) {
    skinny_cuda(args, result, current_stream(h));
  } else {
    through_logits_cuda(args, result, current_stream(h));
  }
  return result.tuple();
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("lm_head_topk(Tensor h, Tensor weight, int k, Tensor? id_map=None) -> (Tensor logp, Tensor ids, Tensor lse)");
}
SPARROW_CPU_IMPL(m) { m.impl("lm_head_topk", TORCH_BOX(&sparrow::lm_head_topk_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl("lm_head_topk", TORCH_BOX(&sparrow::lm_head_topk_op_cuda)); }
#endif
