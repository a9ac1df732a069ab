#include "ops/kv_commit.h"

#include <algorithm>
#include <vector>

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char *kStacked = "kv_commit", *kLayers = "kv_commit_layers";
constexpr int64_t kBytesPerThread = 256 << 10;

// What the two operators share: the paths and lengths, and the error word.
struct Rest {
  const Tensor &path, &num_path, &base_lens, &new_lens;
  const std::optional<Tensor>& error;
};

struct Checked {
  const char* op;
  KvCommitParams params;       // without tensors
  std::vector<char*> tensors;  // keys and values
};

void check_cache(const char* op, const std::vector<Use>& cache, const Rest& r) {
  std::vector<Use> uses = cache;
  uses.insert(uses.end(), {{"path", r.path},
                           {"num_path", r.num_path},
                           {"base_lens", r.base_lens},
                           {"new_lens", r.new_lens, kWritten},
                           {"error", r.error, kWritten}});
  check_tensors(op, uses);
}

// The strides of a key or value tensor, whose dimensions B, S, K, D start at `at`.
void row_params(const Tensor& kv, int64_t at, KvCommitParams& p) {
  const int64_t bytes = kv.element_size();
  p.batch = kv.size(at);
  p.rows = kv.size(at + 1);
  p.heads = kv.size(at + 2);
  p.kv_batch = kv.stride(at) * bytes;
  p.kv_row = kv.stride(at + 1) * bytes;
  p.kv_head = kv.stride(at + 2) * bytes;
  p.kv_bytes = kv.size(at + 3) * bytes;
  if (p.kv_head == p.kv_bytes && p.heads > 0) {  // heads lie side by side: one long row
    p.kv_bytes *= p.heads;
    p.heads = 1;
  }
}

// Everything but the cache; p.batch is known.
void rest_params(const char* op, const Rest& r, KvCommitParams& p) {
  const Arg path{op, "path", r.path}, num_path{op, "num_path", r.num_path}, base_lens{op, "base_lens", r.base_lens},
      new_lens{op, "new_lens", r.new_lens};
  for (const Arg* a : {&path, &num_path, &base_lens, &new_lens}) a->dtype({ScalarType::Int});
  path.dim(2).size(0, p.batch, "B of kv").contiguous();
  for (const Arg* a : {&num_path, &base_lens, &new_lens}) a->dim(1).size(0, p.batch, "B of kv").contiguous();
  p.path = r.path.const_data_ptr<int32_t>();
  p.max_path = r.path.size(1);
  p.num_path = r.num_path.const_data_ptr<int32_t>();
  p.base_lens = r.base_lens.const_data_ptr<int32_t>();
  p.new_lens = r.new_lens.mutable_data_ptr<int32_t>();
  p.error = take_error(op, r.error);
}

Checked check(const Tensor& kv, const Rest& r) {
  check_cache(kStacked, {{"kv", kv, kWritten}}, r);
  Arg{kStacked, "kv", kv}.dim(6).size(1, 2, "keys and values").last_dense();
  Checked c{kStacked, {}, {}};
  row_params(kv, 2, c.params);
  rest_params(kStacked, r, c.params);
  if (kv.numel() == 0) return c;
  char* data = static_cast<char*>(kv.mutable_data_ptr());
  const int64_t bytes = kv.element_size(), layer = kv.stride(0) * bytes, pair = kv.stride(1) * bytes;
  for (int64_t l = 0; l < kv.size(0); ++l)
    for (int64_t half = 0; half < 2; ++half) c.tensors.push_back(data + l * layer + half * pair);
  return c;
}

// t looks like `first`: same dtype, shape and strides.
void check_alike(const Arg& t, const Arg& first) {
  t.same_dtype(first).dim(4);
  for (int64_t d = 0; d < 4; ++d) t.size(d, first.t.size(d), "as in keys[0]");
  for (int64_t d = 0; d < 4; ++d)
    check_that(t.t.stride(d) == first.t.stride(d), kLayers, t.name, " must have the strides of keys[0], got ",
               t.t.stride(d), " and ", first.t.stride(d), " in dimension ", d);
}

Checked check(const std::vector<Tensor>& keys, const std::vector<Tensor>& values, const Rest& r) {
  check_that(!keys.empty() && keys.size() == values.size(), kLayers,
             "keys and values must have one tensor per layer, got ", keys.size(), " and ", values.size());
  std::vector<Use> cache;
  for (const auto& [name, list] : {std::pair{"keys", &keys}, std::pair{"values", &values}})
    for (size_t i = 0; i < list->size(); ++i) cache.emplace_back(name, (*list)[i], kWritten).index = i;
  check_cache(kLayers, cache, r);
  const Arg first{kLayers, "keys[0]", keys[0]};
  first.dim(4).last_dense();
  Checked c{kLayers, {}, {}};
  row_params(keys[0], 0, c.params);
  for (const Use& use : cache) {
    check_alike({kLayers, use.words().c_str(), *use.tensor}, first);
    if (keys[0].numel() > 0) c.tensors.push_back(static_cast<char*>(use.tensor->mutable_data_ptr()));
  }
  rest_params(kLayers, r, c.params);
  return c;
}

// Everything is checked before the first row moves. Returns the longest path.
int64_t check_values(const char* op, const KvCommitParams& p) {
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t base = p.base_lens[b], n = p.num_path[b];
    const int32_t* path = p.path + b * p.max_path;
    check_that(n >= 0 && n <= p.max_path, op, "num_path[", b, "] must lie in [0, ", p.max_path, "], got ", n);
    check_that(base >= 0 && base + n <= p.rows, op, "base_lens[", b, "] must lie in [0, S - num_path] = [0, ",
               p.rows - n, "], got ", base);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t low = j ? path[j - 1] + int64_t{1} : 0, high = p.rows - base;
      check_that(path[j] >= low && path[j] < high, op, "path[", b, "][", j,
                 "] must be above the entry before it and below ", high, " (S - base_lens), got ", path[j]);
    }
    longest = std::max(longest, n);
  }
  return longest;
}

// run(p) for kKvTensors tensors at a time.
template <class Run>
void in_calls(Checked& c, const Run& run) {
  const int64_t all = static_cast<int64_t>(c.tensors.size());
  for (int64_t first = 0; first == 0 || first < all; first += kKvTensors) {
    c.params.tensors = std::min(kKvTensors, all - first);
    c.params.last = first + kKvTensors >= all;
    std::copy_n(c.tensors.begin() + first, c.params.tensors, c.params.kv);
    run(c.params);
  }
}

void run_cpu(Checked c, const Tensor&) {
  const int64_t longest = check_values(c.op, c.params);
  in_calls(c, [&](const KvCommitParams& p) {
    run_items(kv_commit_cpu, p, kv_commit_items(p), 1 + kBytesPerThread / (1 + p.kv_bytes * longest));
  });
}

#if defined(SPARROW_CUDA)
void run_cuda(Checked c, const Tensor& path) {
  const OnDevice on(c.op, path);
  in_calls(c, [&](const KvCommitParams& p) { check_launch(c.op, kv_commit_cuda(p, on.stream)); });
}
#endif

// The one signature: Cache is the stacked buffer, or the keys and values of the layers.
template <void (*run)(Checked, const Tensor&), class... Cache>
struct KvCommit {
  static void call(Cache... cache, const Tensor& path, const Tensor& num_path, const Tensor& base_lens, Tensor new_lens,
                   std::optional<Tensor> error) {
    run(check(cache..., {path, num_path, base_lens, new_lens, error}), path);
  }
};
template <void (*run)(Checked, const Tensor&)>
using Stacked = KvCommit<run, Tensor>;
template <void (*run)(Checked, const Tensor&)>
using Layers = KvCommit<run, std::vector<Tensor>, std::vector<Tensor>>;

}  // namespace
}  // namespace sparrow

#define KV_COMMIT_REST \
  "Tensor path, Tensor num_path, Tensor base_lens, Tensor(c!) new_lens, Tensor(d!)? error=None) -> ()"
SPARROW_LIBRARY(m) {
  m.def("kv_commit(Tensor(a!) kv, " KV_COMMIT_REST);
  m.def("kv_commit_layers(Tensor(a!)[] keys, Tensor(b!)[] values, " KV_COMMIT_REST);
}
SPARROW_CPU_IMPL(m) {
  m.impl(SPARROW_BOX("kv_commit", &sparrow::Stacked<sparrow::run_cpu>::call));
  m.impl(SPARROW_BOX("kv_commit_layers", &sparrow::Layers<sparrow::run_cpu>::call));
}
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) {
  m.impl(SPARROW_BOX("kv_commit", &sparrow::Stacked<sparrow::run_cuda>::call));
  m.impl(SPARROW_BOX("kv_commit_layers", &sparrow::Layers<sparrow::run_cuda>::call));
}
#endif
