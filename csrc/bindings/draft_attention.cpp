#include "ops/draft_attention.h"

#include "bindings/attention.h"
#include "bindings/cuda.h"
#include "kernels/attention_plan.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "draft_attention";

// qkv, cos_sin and out; the caches give K.
DraftAttentionParams take_rows(const Tensor& qkv, const Tensor& cos_sin, const Tensor& k_cache, const Tensor& v_cache,
                               const Tensor& out) {
  DraftAttentionParams d{};
  TreeAttentionParams& p = d.attention;
  const Arg a{kOp, "qkv", qkv};
  a.floating().dim(3).last_dense();
  Arg{kOp, "out", out}.same_dtype(a).dim(4);
  p.dtype = dtype_of(qkv);
  p.batch = qkv.size(0);
  p.nodes = qkv.size(1);
  p.heads = out.size(2);
  p.dim = out.size(3);
  check_head_dim(kOp, p.dim);
  check_that(p.dim % 2 == 0, kOp, "head_dim must be even, got ", p.dim);
  take_caches(kOp, k_cache, v_cache, a, p);
  a.size(2, (p.heads + 2 * p.kv_heads) * p.dim, "(H + 2 K) D");
  take_out(kOp, out, a, p);
  const Arg angles{kOp, "cos_sin", cos_sin};
  angles.dtype({ScalarType::Float}).dim(3).size(0, p.batch, "B").size(1, p.nodes, "T");
  angles.size(2, p.dim, "D").contiguous();
  d.qkv = qkv.const_data_ptr();
  d.qkv_b = qkv.stride(0);
  d.qkv_t = qkv.stride(1);
  d.cos_sin = cos_sin.const_data_ptr<float>();
  d.k_cache = k_cache.mutable_data_ptr();
  d.v_cache = v_cache.mutable_data_ptr();
  return d;
}

void take_tree(const Tensor& seq_lens, const Tensor& tree_start, const std::optional<Tensor>& anc,
               const std::optional<Tensor>& num_rows, TreeAttentionParams& p) {
  p.lens = take_lengths(kOp, seq_lens, "seq_lens", p.batch);
  p.tree_start = take_lengths(kOp, tree_start, "tree_start", p.batch);
  if (num_rows) p.num_rows = take_lengths(kOp, *num_rows, "num_rows", p.batch);
  if (anc) {
    const Arg a{kOp, "anc", *anc};
    a.dtype({ScalarType::Long}).dim(3).size(0, p.batch, "B").size(1, p.nodes, "T").contiguous();
    p.anc = anc->const_data_ptr<int64_t>();
    p.words = anc->size(2);
    check_that(p.words > 0 || p.nodes == 0, kOp, "anc must have a word per 64 tree slots, got shape ", shape_of(*anc));
  }
}

void check_values(const TreeAttentionParams& p, int64_t cache_rows) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t len = p.lens[b], start = p.tree_start[b], used = used_nodes(p, b);
    check_that(len >= 0 && start >= 0 && len + start + p.nodes <= cache_rows, kOp, "seq_lens[", b, "] + tree_start[", b,
               "] + T must be >= 0 and <= Smax = ", cache_rows, ", got ", len, " + ", start, " + ", p.nodes);
    check_that(start + p.nodes <= kMaxNodes, kOp, "tree_start[", b, "] + T must be <= ", kMaxNodes, ", got ", start,
               " + ", p.nodes);
    check_that(p.anc == nullptr || p.words >= words_for(start + p.nodes), kOp,
               "anc must have a word per 64 tree slots (", start + p.nodes, " slots), got ", p.words, " words");
    check_that(used >= 0 && used <= p.nodes, kOp, "num_rows[", b, "] must lie in [0, T = ", p.nodes, "], got ", used);
  }
}

int64_t visible_rows(int64_t cache_rows, int64_t window, int64_t anchors) {
  return window > 0 && window + anchors < cache_rows ? window + anchors : cache_rows;
}

// Everything but the splits and the workspace.
DraftAttentionParams take_all(const Tensor& qkv, const Tensor& cos_sin, const Tensor& k_cache, const Tensor& v_cache,
                              const Tensor& seq_lens, const Tensor& tree_start, const std::optional<Tensor>& anc,
                              double scale, int64_t window, int64_t n_anchor, const std::optional<Tensor>& num_rows,
                              const Tensor& out, const Tensor& workspace, const std::optional<Tensor>& error) {
  check_tensors(kOp, {{"qkv", qkv},
                      {"cos_sin", cos_sin},
                      {"k_cache", k_cache, kWritten},
                      {"v_cache", v_cache, kWritten},
                      {"seq_lens", seq_lens},
                      {"tree_start", tree_start},
                      {"anc", anc},
                      {"num_rows", num_rows},
                      {"out", out, kWritten},
                      {"workspace", workspace, kWritten},
                      {"error", error, kWritten}});
  check_count(kOp, "window", window);
  check_count(kOp, "n_anchor", n_anchor);
  DraftAttentionParams d = take_rows(qkv, cos_sin, k_cache, v_cache, out);
  TreeAttentionParams& p = d.attention;
  take_tree(seq_lens, tree_start, anc, num_rows, p);
  p.scale = take_scale(kOp, scale);
  p.window = window;
  p.anchors = n_anchor;
  p.max_prefix = p.cache_rows;
  p.error = take_error(kOp, error);
  return d;
}

void take_scratch(const Tensor& workspace, int64_t alignment, DraftAttentionParams& d) {
  TreeAttentionParams& p = d.attention;
  const int64_t splits = attention_scratch_splits(visible_rows(p.cache_rows, p.window, p.anchors), 0);
  take_workspace(kOp, workspace, draft_attention_roped(p.batch, p.nodes, p.heads, p.dim), splits, alignment, p);
  d.roped = workspace.mutable_data_ptr();
  p.q = d.roped;
  p.q_h = p.dim;
  p.q_n = p.heads * p.dim;
  p.q_b = p.nodes * p.q_n;
}

}  // namespace

void draft_attention_op_cpu(const Tensor& qkv, const Tensor& cos_sin, Tensor k_cache, Tensor v_cache,
                            const Tensor& seq_lens, const Tensor& tree_start, const std::optional<Tensor>& anc,
                            double scale, int64_t window, int64_t n_anchor, const std::optional<Tensor>& num_rows,
                            Tensor out, Tensor workspace, const std::optional<Tensor>& error) {
  DraftAttentionParams d = take_all(qkv, cos_sin, k_cache, v_cache, seq_lens, tree_start, anc, scale, window, n_anchor,
                                    num_rows, out, workspace, error);
  TreeAttentionParams& p = d.attention;
  p.split_keys = kSplitKeys;
  p.splits = attention_splits(visible_rows(p.cache_rows, window, n_anchor) + kMaxNodes, p.split_keys);
  take_scratch(workspace, sizeof(float), d);
  check_values(p, p.cache_rows);
  if (p.batch * p.nodes * p.heads == 0) return;
  run_items(draft_attention_append_cpu, d, p.batch * p.nodes, 1 + 262144 / qkv.size(2));
  run_attention(p);
}

#if defined(SPARROW_CUDA)
void draft_attention_op_cuda(const Tensor& qkv, const Tensor& cos_sin, Tensor k_cache, Tensor v_cache,
                             const Tensor& seq_lens, const Tensor& tree_start, const std::optional<Tensor>& anc,
                             double scale, int64_t window, int64_t n_anchor, const std::optional<Tensor>& num_rows,
                             Tensor out, Tensor workspace, const std::optional<Tensor>& error) {
  DraftAttentionParams d = take_all(qkv, cos_sin, k_cache, v_cache, seq_lens, tree_start, anc, scale, window, n_anchor,
                                    num_rows, out, workspace, error);
  TreeAttentionParams& p = d.attention;
  check_that(p.nodes <= kMaxNodes, kOp, "T must be <= ", kMaxNodes, ", got ", p.nodes);
  p.window = window < kMostKeys ? window : kMostKeys;
  p.anchors = n_anchor < kMostKeys ? n_anchor : kMostKeys;
  p.split_keys = 0;
  p.splits = attention_grid_splits(visible_rows(p.cache_rows, p.window, p.anchors), p.split_keys);
  take_scratch(workspace, /*alignment=*/16, d);
  check_grid(kOp, "B", p.batch);
  check_grid(kOp, "K", p.kv_heads);
  const OnDevice on(kOp, qkv);
  check_launch(kOp, draft_attention_cuda(d, shared_memory_limit(kOp, qkv), on.stream));
}
#endif

int64_t draft_attention_workspace_size_op(int64_t batch, int64_t rows, int64_t heads, int64_t dim, int64_t max_len) {
  constexpr const char* op = "draft_attention_workspace_size";
  check_count(op, "B", batch);
  check_count(op, "T", rows);
  check_count(op, "H", heads);
  check_count(op, "D", dim);
  check_count(op, "max_len", max_len);
  return check_bytes(op, draft_attention_roped(batch, rows, heads, dim) +
                             attention_workspace(batch, rows, heads, dim, attention_scratch_splits(max_len, 0)));
}

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "draft_attention(Tensor qkv, Tensor cos_sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor seq_lens, "
      "Tensor tree_start, Tensor? anc, float scale, int window, int n_anchor, Tensor? num_rows, Tensor(c!) out, "
      "Tensor(d!) workspace, Tensor(e!)? error=None) -> ()");
  m.def("draft_attention_workspace_size(int B, int T, int H, int D, int max_len) -> int");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("draft_attention", &sparrow::draft_attention_op_cpu)); }
SPARROW_COMPOSITE_IMPL(m) {
  m.impl(SPARROW_BOX("draft_attention_workspace_size", &sparrow::draft_attention_workspace_size_op));
}
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("draft_attention", &sparrow::draft_attention_op_cuda)); }
#endif
