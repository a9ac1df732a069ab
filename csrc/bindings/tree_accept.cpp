#include "ops/tree_accept.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_accept";

using Walk = std::tuple<Tensor, Tensor, Tensor>;

Walk allocate(const Tensor& tokens, const Tensor& parent, const Tensor& target, const std::optional<Tensor>& num_nodes,
              int64_t max_path, const std::optional<Tensor>& error, TreeAcceptParams& p) {
  check_count(kOp, "max_path", max_path, 1);
  check_tensors(kOp, {{"tokens", tokens},
                      {"parent", parent},
                      {"target", target},
                      {"num_nodes", num_nodes},
                      {"error", error, kWritten}});
  const Arg a{kOp, "tokens", tokens}, b{kOp, "parent", parent}, c{kOp, "target", target};
  a.dtype({ScalarType::Long}).dim(2);
  p.batch = tokens.size(0);
  p.nodes = tokens.size(1);
  p.max_path = max_path;
  if (p.nodes > kMaxNodes) refuse(kOp, "tokens must have at most ", kMaxNodes, " nodes, got shape ", shape_of(tokens));
  b.dtype({ScalarType::Int}).dim(2).size(0, p.batch, "B").size(1, p.nodes, "N");
  c.dtype({ScalarType::Long}).dim(2).size(0, p.batch, "B").size(1, p.nodes, "N");
  for (const Arg* x : {&a, &b, &c}) x->contiguous();
  if (num_nodes) Arg{kOp, "num_nodes", *num_nodes}.dtype({ScalarType::Int}).dim(1).size(0, p.batch, "B").contiguous();
  p.error = take_error(kOp, error);
  Tensor num_path = empty(kOp, tokens, {p.batch}, ScalarType::Int);
  Tensor path = empty(kOp, tokens, {p.batch, max_path}, ScalarType::Int);
  Tensor out_tokens = empty(kOp, tokens, {p.batch, max_path}, ScalarType::Long);
  p.tokens = tokens.const_data_ptr<int64_t>();
  p.parent = parent.const_data_ptr<int32_t>();
  p.target = target.const_data_ptr<int64_t>();
  p.num_nodes = num_nodes ? num_nodes->const_data_ptr<int32_t>() : nullptr;
  p.num_path = num_path.mutable_data_ptr<int32_t>();
  p.path = path.mutable_data_ptr<int32_t>();
  p.out_tokens = out_tokens.mutable_data_ptr<int64_t>();
  return {num_path, path, out_tokens};
}

void check_values(const TreeAcceptParams& p) {
  for (int64_t b = 0; p.num_nodes && b < p.batch; ++b) {
    const int32_t n = p.num_nodes[b];
    check_that(n >= 0 && n <= p.nodes, kOp, "num_nodes[", b, "] must lie in [0, ", p.nodes, "], got ", n);
  }
  check_parents(kOp, "parent", p.parent, p.batch, p.nodes);
}

}  // namespace

Walk tree_accept_op_cpu(const Tensor& tokens, const Tensor& parent, const Tensor& target,
                        const std::optional<Tensor>& num_nodes, int64_t max_path, const std::optional<Tensor>& error) {
  TreeAcceptParams p{};
  auto out = allocate(tokens, parent, target, num_nodes, max_path, error, p);
  check_values(p);
  run_items(tree_accept_cpu, p, p.batch, /*grain=*/64);
  return out;
}

#if defined(SPARROW_CUDA)
Walk tree_accept_op_cuda(const Tensor& tokens, const Tensor& parent, const Tensor& target,
                         const std::optional<Tensor>& num_nodes, int64_t max_path, const std::optional<Tensor>& error) {
  TreeAcceptParams p{};
  auto out = allocate(tokens, parent, target, num_nodes, max_path, error, p);
  const OnDevice on(kOp, tokens);
  check_launch(kOp, tree_accept_cuda(p, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "tree_accept(Tensor tokens, Tensor parent, Tensor target, Tensor? num_nodes, int max_path, "
      "Tensor(a!)? error=None) -> (Tensor num_path, Tensor path, Tensor out_tokens)");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("tree_accept", &sparrow::tree_accept_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("tree_accept", &sparrow::tree_accept_op_cuda)); }
#endif
