// What the bindings of topk_lse and lm_head_topk share: outputs, scratch for partial results, the final merge.
#pragma once
#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "ops/topk_lse.h"

namespace sparrow {

struct TopkResult {
  Tensor logp, ids, lse;
  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {logp, ids, lse}; }
};

inline void check_topk(const char* op, int64_t vocab, int64_t k, const std::optional<Tensor>& id_map) {
  check_that(k >= 1 && k <= kTopkMax && k <= vocab, op, "k must lie in [1, min(", kTopkMax, ", V = ", vocab, ")], got ",
             k);
  if (id_map) Arg{op, "id_map", *id_map}.dtype({ScalarType::Long}).dim(1).size(0, vocab, "V").contiguous();
}

// float32 [B, V], rows of any stride, where `like` is [B, N, E]; [1, V] where it is [M, E].
inline LogitBias check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& like, int64_t vocab) {
  if (!bias) return {};
  const bool batched = like.dim() == 3;
  Arg{op, "bias", *bias}
      .dtype({ScalarType::Float})
      .dim(2)
      .size(0, batched ? like.size(0) : 1, batched ? "B" : "one for all rows")
      .size(1, vocab, "V")
      .last_dense();
  const int64_t rows = like.size(like.dim() - 2);
  return {bias->const_data_ptr<float>(), rows > 0 ? rows : 1, bias->stride(0), 0};
}
// The same for the rows from `first` on.
inline LogitBias bias_from(LogitBias bias, int64_t first) {
  bias.first = first;
  return bias;
}

// logp, ids [.., k] and lse [..] for the leading dimensions of `like` (2-D or 3-D).
inline TopkResult topk_outputs(const char* op, const Tensor& like, int64_t k) {
  const int64_t last = like.dim() - 1, shape[] = {like.size(0), last == 2 ? like.size(1) : k, k};
  return {empty(op, like, shape, last + 1, ScalarType::Float), empty(op, like, shape, last + 1, ScalarType::Long),
          empty(op, like, shape, last, ScalarType::Float)};
}

// The partial results of [rows, chunks] in topk_partial_bytes of scratch, 8-byte aligned.
inline TopkPartials topk_partials(void* scratch, int64_t rows, int64_t chunks, int64_t k) {
  float* stat = static_cast<float*>(scratch);
  float* value = stat + rows * chunks * 2;
  return {stat, value, reinterpret_cast<int32_t*>(value + rows * chunks * k), chunks, k};
}

// The merge of the partials of rows from `first` on of the result.
inline TopkMergeParams merge_params(const TopkPartials& parts, const std::optional<Tensor>& id_map,
                                    const TopkResult& result, int64_t first) {
  TopkMergeParams p{};
  p.parts = parts;
  p.id_map = id_map ? id_map->const_data_ptr<int64_t>() : nullptr;
  p.logp = result.logp.mutable_data_ptr<float>() + first * parts.k;
  p.ids = result.ids.mutable_data_ptr<int64_t>() + first * parts.k;
  p.lse = result.lse.mutable_data_ptr<float>() + first;
  return p;
}

// Merges the partials of rows [first, first + rows) of the result.
inline void topk_merge(const TopkPartials& parts, const std::optional<Tensor>& id_map, const TopkResult& result,
                       int64_t first, int64_t rows) {
  run_items(topk_merge_cpu, merge_params(parts, id_map, result, first), rows, /*grain=*/64);
}

#if defined(SPARROW_CUDA)
// topk_lse of `rows` rows of logits, the first of which is row `first` of the result; parts need not be set.
inline void topk_lse_rows_cuda(const char* op, TopkLseParams p, const TopkPartials& parts,
                               const std::optional<Tensor>& id_map, const TopkResult& result, int64_t first,
                               int64_t rows, cudaStream_t stream) {
  p.parts = parts;
  check_launch(op, topk_lse_cuda(p, rows, stream));
  check_launch(op, topk_merge_cuda(merge_params(parts, id_map, result, first), rows, stream));
}
#endif

// The row addressing of a 2-D or 3-D tensor with dense rows: rows, inner, outer_stride, inner_stride.
struct RowLayout {
  int64_t rows, inner, outer_stride, inner_stride;
};
inline RowLayout row_layout(const Arg& arg) {
  const Tensor& t = arg.t;
  if (t.dim() != 2 && t.dim() != 3) refuse(arg.op, arg.name, " must have 2 or 3 dimensions, got shape ", shape_of(t));
  arg.last_dense();
  if (t.dim() == 2) return {t.size(0), t.size(0) > 0 ? t.size(0) : 1, 0, t.stride(0)};
  return {t.size(0) * t.size(1), t.size(1) > 0 ? t.size(1) : 1, t.stride(0), t.stride(1)};
}

}  // namespace sparrow
