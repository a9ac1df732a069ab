#include "ops/tree_rerank.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_rerank";

using Tree = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

void check_layout(const Arg& root, const Arg& score, const Arg& id, const Arg& parent, int64_t num_nodes,
                  TreeRerankParams& p) {
  root.dtype({ScalarType::Long}).dim(1);
  score.dtype({ScalarType::Float}).dim(2);
  id.dtype({ScalarType::Long});
  parent.dtype({ScalarType::Int});
  p.batch = root.t.size(0);
  p.history = score.t.size(1);
  p.nodes = num_nodes;
  for (const Arg* a : {&score, &id, &parent}) a->dim(2).size(0, p.batch, "B").size(1, p.history, "C");
  for (const Arg* a : {&root, &score, &id, &parent}) a->contiguous();
}

Tree allocate(const Tensor& like, TreeRerankParams& p) {
  Tree out{empty(kOp, like, {p.batch, p.nodes}, ScalarType::Long),
           empty(kOp, like, {p.batch, p.nodes}, ScalarType::Int),
           empty(kOp, like, {p.batch, p.nodes, words_for(p.nodes)}, ScalarType::Long),
           empty(kOp, like, {p.batch, p.nodes}, ScalarType::Int), empty(kOp, like, {p.batch}, ScalarType::Int)};
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
  check_count(kOp, "num_nodes", num_nodes, 1, kMaxNodes);
  check_tensors(kOp, {{"root_token", root_token},
                      {"hist_score", hist_score},
                      {"hist_id", hist_id},
                      {"hist_parent", hist_parent},
                      {"error", error, kWritten}});
  TreeRerankParams p{};
  p.error = take_error(kOp, error);
  check_layout({kOp, "root_token", root_token}, {kOp, "hist_score", hist_score}, {kOp, "hist_id", hist_id},
               {kOp, "hist_parent", hist_parent}, num_nodes, p);
  p.root_token = root_token.const_data_ptr<int64_t>();
  p.hist_score = hist_score.const_data_ptr<float>();
  p.hist_id = hist_id.const_data_ptr<int64_t>();
  p.hist_parent = hist_parent.const_data_ptr<int32_t>();
  return p;
}

}  // namespace

Tree tree_rerank_op_cpu(const Tensor& root_token, const Tensor& hist_score, const Tensor& hist_id,
                        const Tensor& hist_parent, int64_t num_nodes, const std::optional<Tensor>& error) {
  TreeRerankParams p = checked(root_token, hist_score, hist_id, hist_parent, num_nodes, error);
  check_parents(kOp, "hist_parent", p.hist_parent, p.batch, p.history);
  const Tensor scratch = empty(kOp, root_token, {p.batch, p.history}, ScalarType::Int);
  p.scratch = scratch.mutable_data_ptr<int32_t>();
  Tree out = allocate(root_token, p);
  run_items(tree_rerank_cpu, p, p.batch, /*grain=*/8);
  return out;
}

#if defined(SPARROW_CUDA)
Tree tree_rerank_op_cuda(const Tensor& root_token, const Tensor& hist_score, const Tensor& hist_id,
                         const Tensor& hist_parent, int64_t num_nodes, const std::optional<Tensor>& error) {
  TreeRerankParams p = checked(root_token, hist_score, hist_id, hist_parent, num_nodes, error);
  const Tensor scratch = empty(kOp, root_token, {p.batch, p.history}, ScalarType::Int);
  p.scratch = scratch.mutable_data_ptr<int32_t>();
  Tree out = allocate(root_token, p);
  const OnDevice on(kOp, root_token);
  check_launch(kOp, tree_rerank_cuda(p, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "tree_rerank(Tensor root_token, Tensor hist_score, Tensor hist_id, Tensor hist_parent, int num_nodes, "
      "Tensor(a!)? error=None) -> (Tensor tokens, Tensor parent, Tensor anc, Tensor depth, Tensor num_nodes)");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("tree_rerank", &sparrow::tree_rerank_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("tree_rerank", &sparrow::tree_rerank_op_cuda)); }
#endif
