#include "ops/tree_accept.h"

#include "bindings/checks.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#include "kernels/tree_accept.cuh"
#endif

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_accept";

std::tuple<Tensor, Tensor, Tensor> allocate(const Tensor& tokens, const Tensor& parent, const Tensor& target,
                                            const std::optional<Tensor>& num_nodes, int64_t max_path,
                                            const std::optional<Tensor>& error, TreeAcceptParams& p) {
  const Arg a{kOp, "tokens", tokens}, b{kOp, "parent", parent}, c{kOp, "target", target};
  b.same_device(a), c.same_device(a);
  if (num_nodes) Arg{kOp, "num_nodes", *num_nodes}.same_device(a);
  a.dtype({ScalarType::Long}).dim(2);
  p.batch = tokens.size(0), p.nodes = tokens.size(1), p.max_path = max_path;
  b.dtype({ScalarType::Int}).dim(2).size(0, p.batch, "B").size(1, p.nodes, "N");
  c.dtype({ScalarType::Long}).dim(2).size(0, p.batch, "B").size(1, p.nodes, "N");
  a.contiguous(), b.contiguous(), c.contiguous();
  if (num_nodes) {
    Arg{kOp, "num_nodes", *num_nodes}.dtype({ScalarType::Int}).dim(1).size(0, p.batch, "B").contiguous();
  }
  check_that(p.nodes <= kMaxNodes, kOp, "tokens must have at most ", kMaxNodes, " nodes, got shape ", shape_of(tokens));
  check_that(max_path >= 1, kOp, "max_path must be at least 1, got ", max_path);
  p.error = take_error(kOp, error, a);
  Tensor num_path = empty(tokens, {p.batch}, ScalarType::Int);
  Tensor path = empty(tokens, {p.batch, max_path}, ScalarType::Int);
  Tensor out_tokens = empty(tokens, {p.batch, max_path}, ScalarType::Long);
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
  check_parents(kOp, p.parent, p.batch, p.nodes);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> tree_accept_op_cpu(const Tensor& tokens, const Tensor& parent, const Tensor& target,
                                                      const std::optional<Tensor>& num_nodes, int64_t max_path,
                                                      const std::optional<Tensor>& error) {
  TreeAcceptParams p;
  auto out = allocate(tokens, parent, target, num_nodes, max_path, error, p);
  check_values(p);
  run_items(tree_accept_cpu, p, p.batch, /*grain=*/64);
  return out;
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor, Tensor> tree_accept_op_cuda(const Tensor& tokens, const Tensor& parent, const Tensor& target,
                                                       const std::optional<Tensor>& num_nodes, int64_t max_path,
                                                       const std::optional<Tensor>& error) {
  const DeviceGuard guard(tokens.get_device_index());
  TreeAcceptParams p;
  auto out = allocate(tokens, parent, target, num_nodes, max_path, error, p);
  check_launch(kOp, tree_accept_cuda(p, current_stream(tokens)));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "tree_accept(Tensor tokens, Tensor parent, Tensor target, Tensor? num_nodes, int max_path, "
      "Tensor(a!)? error=None) -> (Tensor num_path, Tensor path, Tensor out_tokens)");
}
SPARROW_CPU_IMPL(m) { m.impl("tree_accept", TORCH_BOX(&sparrow::tree_accept_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl("tree_accept", TORCH_BOX(&sparrow::tree_accept_op_cuda)); }
#endif
