#include "ops/kv_commit.h"

#include <algorithm>

#include "bindings/checks.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#include "kernels/kv_commit.cuh"
#endif

namespace sparrow {
namespace {

constexpr const char* kOp = "kv_commit";
constexpr int64_t kBytesPerThread = 256 << 10;

void kv_params(const Tensor& kv, KvCommitParams& p) {
  const int64_t bytes = kv.element_size();
  p.layers = kv.size(0), p.batch = kv.size(2), p.heads = kv.size(4), p.rows = kv.size(3);
  p.kv = static_cast<char*>(kv.mutable_data_ptr());
  p.kv_layer = kv.stride(0) * bytes, p.kv_pair = kv.stride(1) * bytes, p.kv_batch = kv.stride(2) * bytes;
  p.kv_row = kv.stride(3) * bytes, p.kv_head = kv.stride(4) * bytes, p.kv_bytes = kv.size(5) * bytes;
  if (p.kv_head == p.kv_bytes && p.heads > 0) {  // heads lie side by side: one long row
    p.kv_bytes *= p.heads;
    p.heads = 1;
  }
  if (p.kv_bytes == 0) p.layers = 0;
}

void hidden_params(const Tensor& kv, const Tensor& path, const std::optional<Tensor>& hidden,
                   const std::optional<Tensor>& hidden_out, KvCommitParams& p) {
  p.hidden = nullptr, p.hidden_out = nullptr;
  p.hidden_batch = p.hidden_row = p.out_batch = p.out_row = p.hidden_bytes = 0, p.nodes = p.rows;
  check_that(hidden.has_value() == hidden_out.has_value(), kOp, "hidden and hidden_out must be given together");
  if (!hidden) return;
  const Arg from{kOp, "hidden", *hidden}, to{kOp, "hidden_out", *hidden_out}, first{kOp, "kv", kv};
  from.same_device(first), to.same_device(first).same_dtype(from);
  from.dim(3).size(0, p.batch, "B of kv").last_dense();
  to.dim(3)
      .size(0, p.batch, "B of kv")
      .size(2, hidden->size(2), "E of hidden")
      .last_dense()
      .rows_apart(2, hidden->size(2));
  check_that(hidden_out->size(1) >= path.size(1), kOp, "hidden_out must have at least P = ", path.size(1),
             " rows, got shape ", shape_of(*hidden_out));
  to.apart_from(from);
  const int64_t bytes = hidden->element_size();
  p.hidden = static_cast<const char*>(hidden->const_data_ptr());
  p.hidden_out = static_cast<char*>(hidden_out->mutable_data_ptr());
  p.hidden_batch = hidden->stride(0) * bytes, p.hidden_row = hidden->stride(1) * bytes;
  p.out_batch = hidden_out->stride(0) * bytes, p.out_row = hidden_out->stride(1) * bytes;
  p.hidden_bytes = hidden->size(2) * bytes, p.nodes = hidden->size(1);
}

// Everything is checked before the first row moves. Returns the longest path.
int64_t check_values(const KvCommitParams& p) {
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t base = p.base_lens[b], n = p.num_path[b];
    const int32_t* path = p.path + b * p.max_path;
    check_that(n >= 0 && n <= p.max_path, kOp, "num_path[", b, "] must lie in [0, ", p.max_path, "], got ", n);
    check_that(base >= 0 && base + n <= p.rows, kOp, "base_lens[", b, "] must lie in [0, S - num_path] = [0, ",
               p.rows - n, "], got ", base);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t low = j ? path[j - 1] + int64_t{1} : 0, high = std::min(p.rows - base, p.nodes);
      check_that(path[j] >= low && path[j] < high, kOp, "path[", b, "][", j,
                 "] must be above the entry before it and below ", high, " (S - base_lens, nodes of hidden), got ",
                 path[j]);
    }
    longest = std::max(longest, n);
  }
  return longest;
}

KvCommitParams checked(const Tensor& kv, const Tensor& path, const Tensor& num_path, const Tensor& base_lens,
                       const Tensor& new_lens, const std::optional<Tensor>& hidden,
                       const std::optional<Tensor>& hidden_out) {
  const Arg a{kOp, "kv", kv};
  for (const Arg& other : {Arg{kOp, "path", path}, Arg{kOp, "num_path", num_path}, Arg{kOp, "base_lens", base_lens},
                           Arg{kOp, "new_lens", new_lens}}) {
    other.same_device(a).dtype({ScalarType::Int});
  }
  a.dim(6).size(1, 2, "keys and values").last_dense().rows_apart(5, kv.size(5));
  const int64_t batch = kv.size(2);
  Arg{kOp, "path", path}.dim(2).size(0, batch, "B of kv").contiguous();
  for (const Arg& lengths :
       {Arg{kOp, "num_path", num_path}, Arg{kOp, "base_lens", base_lens}, Arg{kOp, "new_lens", new_lens}}) {
    lengths.dim(1).size(0, batch, "B of kv").contiguous();
  }
  Arg{kOp, "new_lens", new_lens}.apart_from({kOp, "base_lens", base_lens});
  KvCommitParams p;
  kv_params(kv, p);
  hidden_params(kv, path, hidden, hidden_out, p);
  p.path = path.const_data_ptr<int32_t>(), p.max_path = path.size(1);
  p.num_path = num_path.const_data_ptr<int32_t>(), p.base_lens = base_lens.const_data_ptr<int32_t>();
  p.new_lens = new_lens.mutable_data_ptr<int32_t>();
  return p;
}

}  // namespace

void kv_commit_op_cpu(Tensor kv, const Tensor& path, const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                      const std::optional<Tensor>& hidden, std::optional<Tensor> hidden_out) {
  const KvCommitParams p = checked(kv, path, num_path, base_lens, new_lens, hidden, hidden_out);
  const int64_t longest = check_values(p);
  const int64_t item_bytes = std::max(p.kv_bytes, p.hidden_bytes) * longest;
  run_items(kv_commit_cpu, p, kv_commit_items(p), 1 + kBytesPerThread / (1 + item_bytes));
}

#if defined(SPARROW_CUDA)
void kv_commit_op_cuda(Tensor kv, const Tensor& path, const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                       const std::optional<Tensor>& hidden, std::optional<Tensor> hidden_out) {
  const DeviceGuard guard(kv.get_device_index());
  const KvCommitParams p = checked(kv, path, num_path, base_lens, new_lens, hidden, hidden_out);
  check_launch(kOp, kv_commit_cuda(p, current_stream(kv)));
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "kv_commit(Tensor(a!) kv, Tensor path, Tensor num_path, Tensor base_lens, Tensor(b!) new_lens, "
      "Tensor? hidden=None, Tensor(c!)? hidden_out=None) -> ()");
}
SPARROW_CPU_IMPL(m) { m.impl("kv_commit", TORCH_BOX(&sparrow::kv_commit_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl("kv_commit", TORCH_BOX(&sparrow::kv_commit_op_cuda)); }
#endif
