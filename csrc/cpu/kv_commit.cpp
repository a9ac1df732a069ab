#include "ops/kv_commit.h"

#include <cstring>

namespace sparrow {
namespace SPARROW_ISA {
namespace {

void commit_rows(const KvCommitParams& p, int64_t item) {
  const int64_t head = item % p.heads, rest = item / p.heads, b = rest % p.batch;
  char* base =
      p.kv[rest / p.batch] + b * p.kv_batch + head * p.kv_head + static_cast<int64_t>(p.base_lens[b]) * p.kv_row;
  const int32_t* path = p.path + b * p.max_path;
  for (int64_t j = 0; j < p.num_path[b]; ++j) {
    if (path[j] != j) std::memcpy(base + j * p.kv_row, base + path[j] * p.kv_row, p.kv_bytes);
  }
}

}  // namespace

void kv_commit_cpu(const KvCommitParams& p, int64_t begin, int64_t end) {
  const int64_t kv_items = p.tensors * p.heads * p.batch;
  for (int64_t item = begin; item < end; ++item) {
    if (item < kv_items) {
      commit_rows(p, item);
    } else {
      const int64_t b = item - kv_items;
      p.new_lens[b] = p.base_lens[b] + p.num_path[b];
    }
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
