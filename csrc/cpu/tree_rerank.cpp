// Selection without sorting: the rank-th largest key is found by bisecting its 32 bits, each step one vectorised count.
// One pass in history order then keeps what lies above it, and of the keys equal to it the first few.
#include "ops/tree_rerank.h"

#include <cstring>

#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int32_t kNever = INT32_MIN;  // below the key of every float

// Integers that compare as the floats do; NaN and -inf are kNever, -0 equals 0.
SPARROW_INLINE int32_t ordered(float x) {
  if (!(x > -__builtin_inff())) return kNever;
  x += 0.f;
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits ^ ((bits >> 31) & INT32_MAX);
}

SPARROW_INLINE int64_t count_from(const int32_t* key, int64_t n, int32_t low) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += key[i] >= low;
  return count;
}

// The largest t with at least `rank` keys >= t; there are that many above kNever.
SPARROW_INLINE int32_t threshold(const int32_t* key, int64_t n, int64_t rank) {
  int64_t low = int64_t{kNever} + 1, high = INT32_MAX;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (count_from(key, n, static_cast<int32_t>(middle)) >= rank) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<int32_t>(low);
}

void write_node(const TreeRerankParams& p, int64_t b, int64_t node, int64_t token, int64_t up) {
  const int64_t words = words_for(p.nodes), at = b * p.nodes + node;
  uint64_t* anc = reinterpret_cast<uint64_t*>(p.anc) + b * p.nodes * words;
  p.tokens[at] = token;
  p.parent[at] = static_cast<int32_t>(up);
  p.depth[at] = up < 0 ? 0 : p.depth[b * p.nodes + up] + 1;
  for (int64_t w = 0; w < words; ++w) anc[node * words + w] = up < 0 ? 0 : anc[up * words + w];
  anc[node * words + node / kWordBits] |= uint64_t{1} << (node % kWordBits);
}

}  // namespace

void tree_rerank_cpu(const TreeRerankParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.history;
  for (int64_t b = begin; b < end; ++b) {
    const float* score = p.hist_score + b * n;
    const int32_t* parent = p.hist_parent + b * n;
    int32_t* key = p.scratch + b * n;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t own = ordered(score[i]), bound = parent[i] < 0 ? INT32_MAX : key[parent[i]];
      key[i] = own < bound ? own : bound;
    }
    const int64_t candidates = count_from(key, n, kNever + 1);
    const int64_t keep = candidates < p.nodes - 1 ? candidates : p.nodes - 1;
    const int32_t lowest = keep == candidates ? kNever + 1 : threshold(key, n, keep);
    // No key is above INT32_MAX, which is the threshold where nothing is kept.
    const int64_t above = lowest == INT32_MAX ? 0 : count_from(key, n, lowest + 1);
    int64_t equal = keep == candidates ? n : keep - above;
    int64_t node = 0;
    write_node(p, b, node++, p.root_token[b], -1);
    for (int64_t i = 0; i < n && node <= keep; ++i) {
      if (key[i] < lowest || (key[i] == lowest && equal-- <= 0)) continue;
      key[i] = static_cast<int32_t>(node);  // a kept entry's parent is kept and comes first
      write_node(p, b, node++, p.hist_id[b * n + i], parent[i] < 0 ? 0 : key[parent[i]]);
    }
    p.num_nodes[b] = static_cast<int32_t>(node);
    for (; node < p.nodes; ++node) write_node(p, b, node, 0, -1);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
