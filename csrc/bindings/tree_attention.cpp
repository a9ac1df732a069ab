#include "ops/tree_attention.h"

#include "bindings/attention.h"
#include "bindings/cuda.h"
#include "kernels/attention_plan.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_attention";

void take_options(const std::optional<Tensor>& num_nodes, const std::optional<Tensor>& anc, TreeAttentionParams& p) {
  if (num_nodes) p.num_rows = take_lengths(kOp, *num_nodes, "num_nodes", p.batch);
  if (anc) {
    const Arg a{kOp, "anc", *anc};
    a.dtype({ScalarType::Long}).dim(3).size(0, p.batch, "B").size(1, p.nodes, "N");
    a.size(2, words_for(p.nodes), "W = ceil(N / 64)").contiguous();
    p.anc = anc->const_data_ptr<int64_t>();
    p.words = anc->size(2);
  }
}

// Everything but out, lse and workspace, whose places in memory check_tensors has seen.
TreeAttentionParams take_inputs(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                const Tensor& prefix_lens, const std::optional<Tensor>& num_nodes,
                                const std::optional<Tensor>& anc, double scale, int64_t max_prefix_len,
                                int64_t split_size, const std::optional<Tensor>& error) {
  TreeAttentionParams p{};
  p.error = take_error(kOp, error);
  check_count(kOp, "max_prefix_len", max_prefix_len);
  check_count(kOp, "split_size", split_size, 0, kTooMany);  // beyond the prefix: one piece
  const Arg a{kOp, "q", q};
  a.floating().dim(4).last_dense();
  p.dtype = dtype_of(q);
  p.batch = q.size(0);
  p.nodes = q.size(1);
  p.heads = q.size(2);
  p.dim = q.size(3);
  if (p.nodes > kMaxNodes) refuse(kOp, "q must have at most ", kMaxNodes, " nodes, got shape ", shape_of(q));
  check_head_dim(kOp, p.dim);
  p.q = q.const_data_ptr();
  p.q_b = q.stride(0);
  p.q_n = q.stride(1);
  p.q_h = q.stride(2);
  take_caches(kOp, k_cache, v_cache, a, p);
  p.lens = take_lengths(kOp, prefix_lens, "prefix_lens", p.batch);
  take_options(num_nodes, anc, p);
  p.scale = take_scale(kOp, scale);
  p.zero_unused = true;
  p.max_prefix = max_prefix_len;
  p.split_keys = split_size;  // of the caller; each backend makes its own of 0
  return p;
}

void check_values(const TreeAttentionParams& p, int64_t cache_rows, int64_t max_prefix_len) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t len = p.lens[b], used = used_nodes(p, b);
    check_that(len >= 0 && len <= max_prefix_len, kOp, "prefix_lens[", b,
               "] must lie in [0, max_prefix_len = ", max_prefix_len, "], got ", len);
    check_that(len + p.nodes <= cache_rows, kOp, "prefix_lens[", b, "] + N must be <= Smax = ", cache_rows, ", got ",
               len, " + ", p.nodes);
    check_that(used >= 0 && used <= p.nodes, kOp, "num_nodes[", b, "] must lie in [0, N = ", p.nodes, "], got ", used);
  }
}

// 0 = the operator's own choice of split sizes.
void take_scratch(const Tensor& workspace, int64_t split_size, int64_t alignment, TreeAttentionParams& p) {
  take_workspace(kOp, workspace, 0, attention_scratch_splits(p.max_prefix, split_size), alignment, p);
}

void take_results(const Tensor& out, const std::optional<Tensor>& lse, const Arg& q, TreeAttentionParams& p) {
  take_out(kOp, out, q, p);
  if (!lse) return;
  const Arg l{kOp, "lse", *lse};
  l.dtype({ScalarType::Float}).dim(3).size(0, p.batch, "B").size(1, p.nodes, "N");
  l.size(2, p.heads, "H").contiguous();
  p.lse = lse->mutable_data_ptr<float>();
}

void run_cpu(const Tensor& workspace, TreeAttentionParams p) {
  const int64_t wish = p.split_keys;
  p.split_keys = wish > 0 ? wish : kSplitKeys;
  p.splits = attention_splits(p.max_prefix + p.nodes, p.split_keys);
  take_scratch(workspace, wish, sizeof(float), p);
  check_values(p, p.cache_rows, p.max_prefix);
  if (p.batch * p.nodes * p.heads > 0) run_attention(p);
}

struct Results {
  Tensor out, lse, workspace;
};
Results allocate(const Tensor& q, const TreeAttentionParams& p) {
  const int64_t splits = attention_scratch_splits(p.max_prefix, p.split_keys);
  const int64_t bytes = check_bytes(kOp, attention_workspace(p.batch, p.nodes, p.heads, p.dim, splits));
  return {empty(kOp, q, {p.batch, p.nodes, p.heads, p.dim}, q.scalar_type()),
          empty(kOp, q, {p.batch, p.nodes, p.heads}, ScalarType::Float), empty(kOp, q, {bytes}, ScalarType::Byte)};
}

}  // namespace

void tree_attention_out_op_cpu(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& prefix_lens,
                               const std::optional<Tensor>& num_nodes, const std::optional<Tensor>& anc, double scale,
                               int64_t max_prefix_len, int64_t split_size, Tensor out, std::optional<Tensor> lse,
                               Tensor workspace, const std::optional<Tensor>& error) {
  check_tensors(kOp, {{"q", q},
                      {"k_cache", k_cache},
                      {"v_cache", v_cache},
                      {"prefix_lens", prefix_lens},
                      {"num_nodes", num_nodes},
                      {"anc", anc},
                      {"out", out, kWritten},
                      {"lse", lse, kWritten},
                      {"workspace", workspace, kWritten},
                      {"error", error, kWritten}});
  TreeAttentionParams p =
      take_inputs(q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size, error);
  const Arg a{kOp, "q", q};
  take_results(out, lse, a, p);
  run_cpu(workspace, p);
}

std::tuple<Tensor, Tensor> tree_attention_op_cpu(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                                 const Tensor& prefix_lens, const std::optional<Tensor>& num_nodes,
                                                 const std::optional<Tensor>& anc, double scale, int64_t max_prefix_len,
                                                 int64_t split_size, const std::optional<Tensor>& error) {
  check_tensors(kOp, {{"q", q},
                      {"k_cache", k_cache},
                      {"v_cache", v_cache},
                      {"prefix_lens", prefix_lens},
                      {"num_nodes", num_nodes},
                      {"anc", anc},
                      {"error", error, kWritten}});
  TreeAttentionParams p =
      take_inputs(q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size, error);
  check_values(p, p.cache_rows, p.max_prefix);
  // The lengths can be read here: scratch for the splits in use. No bit of the result depends on their number.
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) longest = p.lens[b] > longest ? p.lens[b] : longest;
  p.max_prefix = longest;
  const Arg a{kOp, "q", q};
  const Results r = allocate(q, p);
  take_results(r.out, r.lse, a, p);
  run_cpu(r.workspace, p);
  return {r.out, r.lse};
}

#if defined(SPARROW_CUDA)
namespace {

void run_cuda(const Tensor& workspace, const Tensor& q, TreeAttentionParams p) {
  p.split_keys = p.split_keys < kMostKeys ? p.split_keys : kMostKeys;
  p.splits = attention_grid_splits(p.max_prefix, p.split_keys);
  take_scratch(workspace, p.split_keys, /*alignment=*/16, p);
  check_grid(kOp, "B", p.batch);
  check_grid(kOp, "K", p.kv_heads);
  const OnDevice on(kOp, q);
  check_launch(kOp, tree_attention_cuda(p, shared_memory_limit(kOp, q), on.stream));
}

}  // namespace

void tree_attention_out_op_cuda(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                const Tensor& prefix_lens, const std::optional<Tensor>& num_nodes,
                                const std::optional<Tensor>& anc, double scale, int64_t max_prefix_len,
                                int64_t split_size, Tensor out, std::optional<Tensor> lse, Tensor workspace,
                                const std::optional<Tensor>& error) {
  check_tensors(kOp, {{"q", q},
                      {"k_cache", k_cache},
                      {"v_cache", v_cache},
                      {"prefix_lens", prefix_lens},
                      {"num_nodes", num_nodes},
                      {"anc", anc},
                      {"out", out, kWritten},
                      {"lse", lse, kWritten},
                      {"workspace", workspace, kWritten},
                      {"error", error, kWritten}});
  TreeAttentionParams p =
      take_inputs(q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size, error);
  take_results(out, lse, {kOp, "q", q}, p);
  run_cuda(workspace, q, p);
}

std::tuple<Tensor, Tensor> tree_attention_op_cuda(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                                  const Tensor& prefix_lens, const std::optional<Tensor>& num_nodes,
                                                  const std::optional<Tensor>& anc, double scale,
                                                  int64_t max_prefix_len, int64_t split_size,
                                                  const std::optional<Tensor>& error) {
  check_tensors(kOp, {{"q", q},
                      {"k_cache", k_cache},
                      {"v_cache", v_cache},
                      {"prefix_lens", prefix_lens},
                      {"num_nodes", num_nodes},
                      {"anc", anc},
                      {"error", error, kWritten}});
  TreeAttentionParams p =
      take_inputs(q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size, error);
  const Results r = allocate(q, p);
  take_results(r.out, r.lse, {kOp, "q", q}, p);
  run_cuda(r.workspace, q, p);
  return {r.out, r.lse};
}
#endif

int64_t tree_attention_workspace_size_op(int64_t batch, int64_t nodes, int64_t heads, int64_t dim,
                                         int64_t max_prefix_len, int64_t split_size) {
  constexpr const char* op = "tree_attention_workspace_size";
  check_count(op, "B", batch);
  check_count(op, "N", nodes);
  check_count(op, "H", heads);
  check_count(op, "D", dim);
  check_count(op, "max_prefix_len", max_prefix_len);
  check_count(op, "split_size", split_size, 0, kTooMany);
  return check_bytes(
      op, attention_workspace(batch, nodes, heads, dim, attention_scratch_splits(max_prefix_len, split_size)));
}

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "tree_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor prefix_lens, Tensor? num_nodes, Tensor? anc, "
      "float scale, int max_prefix_len, int split_size=0, Tensor(a!)? error=None) -> (Tensor out, Tensor lse)");
  m.def(
      "tree_attention_out(Tensor q, Tensor k_cache, Tensor v_cache, Tensor prefix_lens, Tensor? num_nodes, "
      "Tensor? anc, float scale, int max_prefix_len, int split_size, Tensor(a!) out, Tensor(b!)? lse, "
      "Tensor(c!) workspace, Tensor(d!)? error=None) -> ()");
  m.def("tree_attention_workspace_size(int B, int N, int H, int D, int max_prefix_len, int split_size) -> int");
}
SPARROW_CPU_IMPL(m) {
  m.impl(SPARROW_BOX("tree_attention", &sparrow::tree_attention_op_cpu));
  m.impl(SPARROW_BOX("tree_attention_out", &sparrow::tree_attention_out_op_cpu));
}
SPARROW_COMPOSITE_IMPL(m) {
  m.impl(SPARROW_BOX("tree_attention_workspace_size", &sparrow::tree_attention_workspace_size_op));
}
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) {
  m.impl(SPARROW_BOX("tree_attention", &sparrow::tree_attention_op_cuda));
  m.impl(SPARROW_BOX("tree_attention_out", &sparrow::tree_attention_out_op_cuda));
}
#endif
