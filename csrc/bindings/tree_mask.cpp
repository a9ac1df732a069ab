#include "ops/tree_mask.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_mask";

std::tuple<Tensor, Tensor> allocate(const Tensor& parent, const std::optional<Tensor>& error, TreeMaskParams& p) {
  check_tensors(kOp, {{"parent", parent}, {"error", error, kWritten}});
  Arg{kOp, "parent", parent}.dtype({ScalarType::Int}).dim(2).contiguous();
  p.error = take_error(kOp, error);
  p.batch = parent.size(0);
  p.nodes = parent.size(1);
  if (p.nodes > kMaxNodes) refuse(kOp, "parent must have at most ", kMaxNodes, " nodes, got shape ", shape_of(parent));
  Tensor anc = empty(kOp, parent, {p.batch, p.nodes, words_for(p.nodes)}, ScalarType::Long);
  Tensor depth = empty(kOp, parent, {p.batch, p.nodes}, ScalarType::Int);
  p.parent = parent.const_data_ptr<int32_t>();
  p.anc = anc.mutable_data_ptr<int64_t>();
  p.depth = depth.mutable_data_ptr<int32_t>();
  return {anc, depth};
}

}  // namespace

std::tuple<Tensor, Tensor> tree_mask_op_cpu(const Tensor& parent, const std::optional<Tensor>& error) {
  TreeMaskParams p{};
  auto out = allocate(parent, error, p);
  check_parents(kOp, "parent", p.parent, p.batch, p.nodes);
  if (p.nodes > 0) run_items(tree_mask_cpu, p, p.batch, /*grain=*/64);
  return out;
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor> tree_mask_op_cuda(const Tensor& parent, const std::optional<Tensor>& error) {
  TreeMaskParams p{};
  auto out = allocate(parent, error, p);
  const OnDevice on(kOp, parent);
  check_launch(kOp, tree_mask_cuda(p, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) { m.def("tree_mask(Tensor parent, Tensor(a!)? error=None) -> (Tensor anc, Tensor depth)"); }
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("tree_mask", &sparrow::tree_mask_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("tree_mask", &sparrow::tree_mask_op_cuda)); }
#endif
