#include "ops/tree_rerank.h"

#include "bindings/checks.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#include "kernels/tree_rerank.cuh"
#endif

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_rerank";

using Tree = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

void check_tensors(const Arg& root, const Arg& score, const Arg& id, const Arg& parent, int64_t num_nodes,
                   TreeRerankParams& p) {
  for (const Arg* a : {&score, &id, &parent}) a->same_device(root);
  root.dtype({ScalarType::Long}), score.dtype({ScalarType::Float});
  id.dtype({ScalarType::Long}), parent.dtype({ScalarType::Int});
  root.dim(1), score.dim(2);
  p.batch = root.t.size(0), p.history = score.t.size(1), p.nodes = num_nodes;
  for (const Arg* a : {&score, &id, &parent}) a->dim(2).size(0, p.batch, "B").size(1, p.history, "C");
  for (const Arg* a : {&root, &score, &id, &parent}) a->contiguous();
  check_that(num_nodes >= 1 && num_nodes <= kMaxNodes, kOp, "num_nodes must lie in [1, ", kMaxNodes, "], got ",
             num_nodes);
  check_that(p.history < INT32_MAX, kOp, "hist_score must have less than 2^31 entries, got shape ", shape_of(score.t));
}

void check_hist_parent(const TreeRerankParams& p) {
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.history; ++i) {
      const int32_t up = p.hist_parent[b * p.history + i];
      check_that(up >= -1 && up < i, kOp, "hist_parent[", b, "][", i, "] must lie in [-1, ", i, "), got ", up);
    }
}

Tree allocate(const Tensor& like, TreeRerankParams& p) {
  Tree out{empty(like, {p.batch, p.nodes}, ScalarType::Long), empty(like, {p.batch, p.nodes}, ScalarType::Int),
           empty(like, {p.batch, p.nodes, words_for(p.nodes)}, ScalarType::Long),
           empty(like, {p.batch, p.nodes}, ScalarType::Int), empty(like, {p.batch}, ScalarType::Int)};
  p.tokens = std::get<0>(out).mutable_data_ptr<int64_t>();
  p.parent = std::get<1>(out).mutable_data_ptr<int32_t>();
  p.anc = std::get<2>(out).mutable_data_ptr<int64_t>();
  p.depth = std::get<3>(out).mutable_data_ptr<int32_t>();
  p.num_nodes = std::get<4>(out).mutable_data_ptr<int32_t>();
  return out;
}

// Everything but the values of hist_parent, scratch and the outputs.
TreeRerankParams checked(const Tensor& root_token, const Tensor& hist_score, const Tensor& hist_id,
                         const Tensor& hist_parent, int64_t num_nodes, const std::optional<Tensor>& error) {
  TreeRerankParams p;
  p.error = take_error(kOp, error, {kOp, "root_token", root_token});
  check_tensors({kOp, "root_token", root_token}, {kOp, "hist_score", hist_score}, {kOp, "hist_id", hist_id},
                {kOp, "hist_parent", hist_parent}, num_nodes, p);
  p.root_token = root_token.const_data_ptr<int64_t>(), p.hist_score = hist_score.const_data_ptr<float>();
  p.hist_id = hist_id.const_data_ptr<int64_t>(), p.hist_parent = hist_parent.const_data_ptr<int32_t>();
  return p;
}

}  // namespace

Tree tree_rerank_op_cpu(const Tensor& root_token, const Tensor& hist_score, const Tensor& hist_id,
                        const Tensor& hist_parent, int64_t num_nodes, const std::optional<Tensor>& error) {
  TreeRerankParams p = checked(root_token, hist_score, hist_id, hist_parent, num_nodes, error);
  check_hist_parent(p);
  const Tensor scratch = empty(root_token, {p.batch, p.history}, ScalarType::Int);
  p.scratch = scratch.mutable_data_ptr<int32_t>();
  Tree out = allocate(root_token, p);
  run_items(tree_rerank_cpu, p, p.batch, /*grain=*/8);
  return out;
}

#if defined(SPARROW_CUDA)
Tree tree_rerank_op_cuda(const Tensor& root_token, const Tensor& hist_score, const Tensor& hist_id,
                         const Tensor& hist_parent, int64_t num_nodes, const std::optional<Tensor>& error) {
  const DeviceGuard guard(root_token.get_device_index());
  TreeRerankParams p = checked(root_token, hist_score, hist_id, hist_parent, num_nodes, error);
  const Tensor scratch = empty(root_token, {p.batch, p.history}, ScalarType::Int);
  p.scratch = scratch.mutable_data_ptr<int32_t>();
  Tree out = allocate(root_token, p);
  check_launch(kOp, tree_rerank_cuda(p, current_stream(root_token)));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "tree_rerank(Tensor root_token, Tensor hist_score, Tensor hist_id, Tensor hist_parent, int num_nodes, "
      "Tensor(a!)? error=None) -> (Tensor tokens, Tensor parent, Tensor anc, Tensor depth, Tensor num_nodes)");
}
SPARROW_CPU_IMPL(m) { m.impl("tree_rerank", TORCH_BOX(&sparrow::tree_rerank_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl("tree_rerank", TORCH_BOX(&sparrow::tree_rerank_op_cuda)); }
#endif
