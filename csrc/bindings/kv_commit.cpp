#include "ops/kv_commit.h"

#include <algorithm>
#include <vector>

#include "bindings/checks.h"
#if defined(SPARROW_CUDA)
#include "bindings/cuda.h"
#include "kernels/kv_commit.cuh"
#endif

namespace sparrow {
namespace {

constexpr const char* kOp = "kv_commit";
constexpr int64_t kBytesPerThread = 256 << 10;

// The strides of a key or value tensor, whose dimensions B, S, K, D start at `at`.
void row_params(const Tensor& kv, int64_t at, KvCommitParams& p) {
  const int64_t bytes = kv.element_size();
  p.batch = kv.size(at), p.rows = kv.size(at + 1), p.heads = kv.size(at + 2);
  p.kv_batch = kv.stride(at) * bytes, p.kv_row = kv.stride(at + 1) * bytes, p.kv_head = kv.stride(at + 2) * bytes;
  p.kv_bytes = kv.size(at + 3) * bytes;
  if (p.kv_head == p.kv_bytes && p.heads > 0) {  // heads lie side by side: one long row
    p.kv_bytes *= p.heads;
    p.heads = 1;
  }
}

void hidden_params(const Arg& first, const Tensor& path, const std::optional<Tensor>& hidden,
                   const std::optional<Tensor>& hidden_out, KvCommitParams& p) {
  p.hidden = nullptr, p.hidden_out = nullptr;
  p.hidden_batch = p.hidden_row = p.out_batch = p.out_row = p.hidden_bytes = 0, p.nodes = p.rows;
  check_that(hidden.has_value() == hidden_out.has_value(), kOp, "hidden and hidden_out must be given together");
  if (!hidden) return;
  const Arg from{kOp, "hidden", *hidden}, to{kOp, "hidden_out", *hidden_out};
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

struct Rest {
  const Tensor &path, &num_path, &base_lens, &new_lens;
  const std::optional<Tensor>&hidden, &hidden_out, &error;
};

// Everything but the cache; p.batch is known.
void rest_params(const Arg& first, const Rest& r, KvCommitParams& p) {
  const Arg path{kOp, "path", r.path}, num_path{kOp, "num_path", r.num_path}, base_lens{kOp, "base_lens", r.base_lens},
      new_lens{kOp, "new_lens", r.new_lens};
  for (const Arg* a : {&path, &num_path, &base_lens, &new_lens}) a->same_device(first).dtype({ScalarType::Int});
  path.dim(2).size(0, p.batch, "B of kv").contiguous();
  for (const Arg* a : {&num_path, &base_lens, &new_lens}) a->dim(1).size(0, p.batch, "B of kv").contiguous();
  new_lens.apart_from(base_lens);
  hidden_params(first, r.path, r.hidden, r.hidden_out, p);
  p.path = r.path.const_data_ptr<int32_t>(), p.max_path = r.path.size(1);
  p.num_path = r.num_path.const_data_ptr<int32_t>(), p.base_lens = r.base_lens.const_data_ptr<int32_t>();
  p.new_lens = r.new_lens.mutable_data_ptr<int32_t>();
  p.error = take_error(kOp, r.error, first);
}

struct Checked {
  KvCommitParams params;       // without tensors
  std::vector<char*> tensors;  // keys and values
};

Checked check_stacked(const Tensor& kv, const Rest& r) {
  const Arg a{kOp, "kv", kv};
  a.dim(6).size(1, 2, "keys and values").last_dense().rows_apart(5, kv.size(5));
  Checked c;
  row_params(kv, 2, c.params);
  rest_params(a, r, c.params);
  if (c.params.kv_bytes == 0) return c;
  char* data = static_cast<char*>(kv.mutable_data_ptr());
  const int64_t bytes = kv.element_size(), layer = kv.stride(0) * bytes, pair = kv.stride(1) * bytes;
  const int64_t tensors = 2 * kv.size(0);
  c.tensors.reserve(tensors);
  for (int64_t i = 0; i < tensors; ++i) c.tensors.push_back(data + i / 2 * layer + i % 2 * pair);
  return c;
}

// t looks like `first`: same device, dtype, shape and strides.
void check_alike(const Arg& t, const Arg& first) {
  t.same_device(first).same_dtype(first).dim(4);
  for (int64_t d = 0; d < 4; ++d) t.size(d, first.t.size(d), "as in keys[0]");
  for (int64_t d = 0; d < 4; ++d) {
    check_that(t.t.stride(d) == first.t.stride(d), kOp, t.name, " must have the strides of keys[0], got ",
               t.t.stride(d), " and ", first.t.stride(d), " in dimension ", d);
  }
}

Checked check_layers(const std::vector<Tensor>& keys, const std::vector<Tensor>& values, const Rest& r) {
  check_that(!keys.empty() && keys.size() == values.size(), kOp, "keys and values must have one tensor per layer, got ",
             keys.size(), " and ", values.size());
  const Arg first{kOp, "keys[0]", keys[0]};
  first.dim(4).last_dense().rows_apart(3, keys[0].size(3));
  Checked c;
  row_params(keys[0], 0, c.params);
  c.tensors.reserve(2 * keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string at = "[" + std::to_string(i) + "]", key = "keys" + at, value = "values" + at;
    check_alike({kOp, key.c_str(), keys[i]}, first), check_alike({kOp, value.c_str(), values[i]}, first);
    if (c.params.kv_bytes == 0) continue;
    for (const Tensor* t : {&keys[i], &values[i]}) c.tensors.push_back(static_cast<char*>(t->mutable_data_ptr()));
  }
  std::vector<char*> sorted = c.tensors;
  std::sort(sorted.begin(), sorted.end());
  check_that(keys[0].numel() == 0 || std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), kOp,
             "keys and values must be different tensors, got one twice");
  rest_params(first, r, c.params);
  return c;
}

// run(p) for kKvTensors tensors at a time.
template <class Run>
void in_calls(Checked& c, const Run& run) {
  const int64_t all = static_cast<int64_t>(c.tensors.size());
  for (int64_t first = 0; first == 0 || first < all; first += kKvTensors) {
    c.params.tensors = std::min(kKvTensors, all - first), c.params.last = first + kKvTensors >= all;
    std::copy_n(c.tensors.begin() + first, c.params.tensors, c.params.kv);
    run(c.params);
  }
}

void run_cpu(Checked c) {
  const int64_t longest = check_values(c.params);
  in_calls(c, [&](const KvCommitParams& p) {
    const int64_t item_bytes = std::max(p.kv_bytes, p.hidden_bytes) * longest;
    run_items(kv_commit_cpu, p, kv_commit_items(p), 1 + kBytesPerThread / (1 + item_bytes));
  });
}

}  // namespace

void kv_commit_op_cpu(Tensor kv, const Tensor& path, const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                      const std::optional<Tensor>& hidden, std::optional<Tensor> hidden_out,
                      std::optional<Tensor> error) {
  run_cpu(check_stacked(kv, {path, num_path, base_lens, new_lens, hidden, hidden_out, error}));
}

void kv_commit_layers_op_cpu(std::vector<Tensor> keys, std::vector<Tensor> values, const Tensor& path,
                             const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                             const std::optional<Tensor>& hidden, std::optional<Tensor> hidden_out,
                             std::optional<Tensor> error) {
  run_cpu(check_layers(keys, values, {path, num_path, base_lens, new_lens, hidden, hidden_out, error}));
}

#if defined(SPARROW_CUDA)
namespace {

void run_cuda(Checked c, const Tensor& path) {
  const cudaStream_t stream = current_stream(path);
  in_calls(c, [&](const KvCommitParams& p) { check_launch(kOp, kv_commit_cuda(p, stream)); });
}

}  // namespace

void kv_commit_op_cuda(Tensor kv, const Tensor& path, const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                       const std::optional<Tensor>& hidden, std::optional<Tensor> hidden_out,
                       std::optional<Tensor> error) {
  const DeviceGuard guard(kv.get_device_index());
  run_cuda(check_stacked(kv, {path, num_path, base_lens, new_lens, hidden, hidden_out, error}), path);
}

void kv_commit_layers_op_cuda(std::vector<Tensor> keys, std::vector<Tensor> values, const Tensor& path,
                              const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                              const std::optional<Tensor>& hidden, std::optional<Tensor> hidden_out,
                              std::optional<Tensor> error) {
  const DeviceGuard guard(path.get_device_index());
  run_cuda(check_layers(keys, values, {path, num_path, base_lens, new_lens, hidden, hidden_out, error}), path);
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "kv_commit(Tensor(a!) kv, Tensor path, Tensor num_path, Tensor base_lens, Tensor(b!) new_lens, "
      "Tensor? hidden=None, Tensor(c!)? hidden_out=None, Tensor(d!)? error=None) -> ()");
  m.def(
      "kv_commit_layers(Tensor(a!)[] keys, Tensor(b!)[] values, Tensor path, Tensor num_path, Tensor base_lens, "
      "Tensor(c!) new_lens, Tensor? hidden=None, Tensor(d!)? hidden_out=None, Tensor(e!)? error=None) -> ()");
}
SPARROW_CPU_IMPL(m) {
  m.impl("kv_commit", TORCH_BOX(&sparrow::kv_commit_op_cpu));
  m.impl("kv_commit_layers", TORCH_BOX(&sparrow::kv_commit_layers_op_cpu));
}
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) {
  m.impl("kv_commit", TORCH_BOX(&sparrow::kv_commit_op_cuda));
  m.impl("kv_commit_layers", TORCH_BOX(&sparrow::kv_commit_layers_op_cuda));
}
#endif
