#include "ops/lm_head_topk.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "bindings/linear.h"
#include "bindings/topk.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "lm_head_topk";

struct LmHeadArgs {
  const Tensor& h;
  const RowLayout rows;
  const Tensor& weight;
  const std::optional<Tensor>& id_map;
  const int64_t k;
  const LogitBias bias;
  int64_t workspace_bytes() const { return lm_head_topk_workspace_bytes(rows.rows, weight.size(1), weight.size(0), k); }
};

// Without packed, rows and parts.
LmHeadTopkParams make_params(const LmHeadArgs& a) {
  LmHeadTopkParams p{};
  p.h = a.h.const_data_ptr();
  p.dtype = dtype_of(a.h);
  p.inner = a.rows.inner;
  p.outer_stride = a.rows.outer_stride;
  p.inner_stride = a.rows.inner_stride;
  p.weight = a.weight.const_data_ptr();
  p.weight_stride = a.weight.stride(0);
  p.width = a.weight.size(1);
  p.vocab = a.weight.size(0);
  p.bias = a.bias;
  return p;
}

void skinny(const LmHeadArgs& a, const TopkResult& result, char* scratch) {
  LmHeadTopkParams p = make_params(a);
  const int64_t most = a.rows.rows < kSkinnyRows ? a.rows.rows : kSkinnyRows;
  p.packed = align_packed(scratch);
  scratch += lm_head_align(packed_bytes(most, p.width));
  p.parts = topk_partials(scratch, most, (p.vocab + kLmHeadChunk - 1) / kLmHeadChunk, a.k);
  for (p.first = 0; p.first < a.rows.rows; p.first += most) {
    p.rows = a.rows.rows - p.first < most ? a.rows.rows - p.first : most;
    run_items(lm_head_pack_cpu, p, pack_items(p.rows), /*grain=*/4);
    const int64_t work = p.rows * p.width * kLmHeadChunk;  // multiply-adds of an item
    run_items(lm_head_topk_cpu, p, p.parts.chunks, 1 + (1 << 19) / (work + 1));
    topk_merge(p.parts, a.id_map, result, p.first, p.rows);
  }
}

Tensor matrix(const Tensor& like, void* data, int64_t rows, int64_t columns, int64_t stride) {
  const int64_t shape[] = {rows, columns}, strides[] = {stride, 1};
  return torch::stable::from_blob(data, {shape, 2}, {strides, 2}, like.device(), like.scalar_type());
}

// The rows of h [M, E] or [B, N, E] as the matrix the library takes: in place, or copied to `room` where no one stride
// reaches them all.
Tensor dense_rows(const LmHeadArgs& a, char* room) {
  const Tensor& h = a.h;
  const int64_t rows = a.rows.rows, width = a.weight.size(1);
  void* data = const_cast<void*>(h.const_data_ptr());
  if (h.dim() == 2 || h.size(1) == 1) return matrix(h, data, rows, width, h.stride(0));
  if (h.size(0) == 1 || h.stride(0) == h.size(1) * h.stride(1)) return matrix(h, data, rows, width, h.stride(1));
  const int64_t shape[] = {h.size(0), h.size(1), width}, strides[] = {h.size(1) * width, width, 1};
  Tensor copy = torch::stable::from_blob(room, {shape, 3}, {strides, 3}, h.device(), h.scalar_type());
  torch::stable::copy_(copy, h);
  return matrix(h, room, rows, width, width);
}

// The scratch where logits are in memory: dense_rows' room, the logits of `most` rows at a time, their partial results.
struct InMemory {
  int64_t most;
  Tensor logits;
  char* partials;
};
InMemory in_memory(const LmHeadArgs& a, char* scratch) {
  const int64_t rows = a.rows.rows, vocab = a.weight.size(0), most = rows < kLmHeadGemmRows ? rows : kLmHeadGemmRows;
  char* logits = scratch + lm_head_dense_bytes(rows, a.weight.size(1));
  return {most, matrix(a.h, logits, most, vocab, vocab), logits + lm_head_logit_bytes(rows, vocab)};
}

void with_library(const LmHeadArgs& a, const TopkResult& result, char* scratch) {
  const InMemory m = in_memory(a, scratch);
  const Tensor x = dense_rows(a, scratch);
  const int64_t vocab = a.weight.size(0);
  const TopkPartials parts = topk_partials(m.partials, m.most, topk_chunks(vocab), a.k);
  for (int64_t begin = 0; begin < a.rows.rows; begin += m.most) {
    const int64_t count = a.rows.rows - begin < m.most ? a.rows.rows - begin : m.most;
    library_linear(rows_of(m.logits, 0, count), rows_of(x, begin, count), a.weight, std::nullopt);
    const TopkLseParams p{m.logits.const_data_ptr(), count, 0, vocab, vocab, dtype_of(a.h), parts,
                          bias_from(a.bias, begin)};
    run_items(topk_lse_cpu, p, count * parts.chunks, /*grain=*/4);
    topk_merge(parts, a.id_map, result, begin, count);
  }
}

void run(const LmHeadArgs& a, const TopkResult& result, char* scratch) {
  if (a.rows.rows == 0) return;
  if (use_library(a.rows.rows, dtype_of(a.h))) return with_library(a, result, scratch);
  skinny(a, result, scratch);
}

LmHeadArgs check_arguments(const Tensor& h, const Tensor& weight, int64_t k, const std::optional<Tensor>& id_map,
                           const std::optional<Tensor>& bias) {
  check_tensors(kOp, {{"h", h}, {"weight", weight}, {"id_map", id_map}, {"bias", bias}});
  const Arg arg{kOp, "h", h}, weight_arg{kOp, "weight", weight};
  arg.floating();
  weight_arg.same_dtype(arg).dim(2).last_dense();
  const RowLayout rows = row_layout(arg);
  weight_arg.size(1, h.size(h.dim() - 1), "E, the last dimension of h");
  check_topk(kOp, weight.size(0), k, id_map);
  return {h, rows, weight, id_map, k, check_bias(kOp, bias, h, weight.size(0))};
}

// The form that allocates; `run_on` is run or run_cuda.
template <class Run>
std::tuple<Tensor, Tensor, Tensor> allocate_and(const Run& run_on, const LmHeadArgs& a) {
  const TopkResult result = topk_outputs(kOp, a.h, a.k);
  const Tensor scratch = empty(kOp, a.h, {a.workspace_bytes()}, ScalarType::Byte);
  run_on(a, result, static_cast<char*>(scratch.mutable_data_ptr()));
  return result.tuple();
}

#if defined(SPARROW_CUDA)
// Up to kSkinnyRows rows: logits in registers only.
void skinny_cuda(const LmHeadArgs& a, const TopkResult& result, char* scratch, cudaStream_t stream) {
  LmHeadTopkParams p = make_params(a);
  p.rows = a.rows.rows;
  p.parts = topk_partials(scratch, p.rows, lm_head_lists(p.vocab), a.k);
  check_launch(kOp, lm_head_topk_cuda(p, stream));
  check_launch(kOp, topk_merge_cuda(merge_params(p.parts, a.id_map, result, 0), p.rows, stream));
}

// More rows, and float32: logits in memory, `most` rows at a time, then topk_lse.
void through_logits_cuda(const LmHeadArgs& a, const TopkResult& result, char* scratch, cudaStream_t stream) {
  LmHeadTopkParams p = make_params(a);
  const bool plain = p.dtype == DType::f32;
  const InMemory m = in_memory(a, scratch);
  const Tensor x = plain ? a.h : dense_rows(a, scratch);
  const TopkPartials parts = topk_partials(m.partials, m.most, topk_cuda_lists(p.vocab), a.k);
  for (p.first = 0; p.first < a.rows.rows; p.first += m.most) {
    p.rows = a.rows.rows - p.first < m.most ? a.rows.rows - p.first : m.most;
    if (plain)
      check_launch(kOp, lm_head_logits_cuda(p, static_cast<float*>(m.logits.mutable_data_ptr()), stream));
    else
      library_linear(rows_of(m.logits, 0, p.rows), rows_of(x, p.first, p.rows), a.weight, std::nullopt);
    const TopkLseParams topk{m.logits.const_data_ptr(), p.rows, 0, p.vocab, p.vocab, p.dtype, parts,
                             bias_from(a.bias, p.first)};
    topk_lse_rows_cuda(kOp, topk, parts, a.id_map, result, p.first, p.rows, stream);
  }
}

void run_cuda(const LmHeadArgs& a, const TopkResult& result, char* scratch) {
  if (a.rows.rows == 0) return;
  const OnDevice on(kOp, a.h);
  if (a.rows.rows <= kSkinnyRows && dtype_of(a.h) != DType::f32) return skinny_cuda(a, result, scratch, on.stream);
  through_logits_cuda(a, result, scratch, on.stream);
}
#endif

}  // namespace

std::tuple<Tensor, Tensor, Tensor> lm_head_topk_op_cpu(const Tensor& h, const Tensor& weight, int64_t k,
                                                       const std::optional<Tensor>& id_map,
                                                       const std::optional<Tensor>& bias) {
  return allocate_and(run, check_arguments(h, weight, k, id_map, bias));
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor, Tensor> lm_head_topk_op_cuda(const Tensor& h, const Tensor& weight, int64_t k,
                                                        const std::optional<Tensor>& id_map,
                                                        const std::optional<Tensor>& bias) {
  return allocate_and(run_cuda, check_arguments(h, weight, k, id_map, bias));
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "lm_head_topk(Tensor h, Tensor weight, int k, Tensor? id_map=None, Tensor? bias=None) -> (Tensor logp, "
      "Tensor ids, Tensor lse)");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("lm_head_topk", &sparrow::lm_head_topk_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("lm_head_topk", &sparrow::lm_head_topk_op_cuda)); }
#endif
