// One row: the seen tokens by a sweep over the bitmap, a vector of flags at a time (a chat has seen a small part of
// the vocabulary, so most vectors are zero and their logits are never read), then the tokens of the visible nodes that
// are neither in the bitmap nor repeated by a lower visible node.
#include "ops/repetition_penalty.h"

#include "cpu/row_max.h"  // any

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int kFlags = 4 * kLanes;  // per vector
typedef uint8_t vb __attribute__((vector_size(kLanes)));

SPARROW_INLINE void penalise(float& x, float p) { x = x < 0.f ? x * p : x / p; }

SPARROW_INLINE void penalise_seen(float* x, const uint8_t* seen, int64_t vocab, float p) {
  const vf penalty = splat(p);
  int64_t v = 0;
  for (; v + kFlags <= vocab; v += kFlags) {
    vi flags;
    std::memcpy(&flags, seen + v, sizeof flags);
    if (!any(flags != 0)) continue;
    for (int64_t i = v; i < v + kFlags; i += kLanes) {
      vb part;
      std::memcpy(&part, seen + i, sizeof part);
      const vf old = load(x + i);
      const vf changed = select(old < splat(0.f), old * penalty, old / penalty);
      store(x + i, select(__builtin_convertvector(part, vi) != 0, changed, old));
    }
  }
  for (; v < vocab; ++v)
    if (seen[v]) penalise(x[v], p);
}

SPARROW_INLINE void penalise_path(float* x, const uint8_t* seen, const int64_t* tokens, const uint64_t* anc,
                                  int64_t nodes, float p) {
  int64_t done[kMaxNodes];
  int count = 0;
  for (int64_t j = 0; j < nodes; ++j) {
    if (((anc[j / kWordBits] >> (j % kWordBits)) & 1) == 0 || seen[tokens[j]]) continue;
    bool repeated = false;
    for (int c = 0; c < count; ++c) repeated |= done[c] == tokens[j];
    if (repeated) continue;
    done[count++] = tokens[j];
    penalise(x[tokens[j]], p);
  }
}

}  // namespace

void repetition_penalty_cpu(const RepetitionPenaltyParams& p, int64_t begin, int64_t end) {
  const int64_t words = words_for(p.nodes);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.nodes, n = i % p.nodes;
    float* x = p.logits + b * p.stride_b + n * p.stride_n;
    const uint8_t* seen = p.seen + b * p.vocab;
    penalise_seen(x, seen, p.vocab, p.penalty[b]);
    penalise_path(x, seen, p.tokens + b * p.nodes, reinterpret_cast<const uint64_t*>(p.anc) + i * words, p.nodes,
                  p.penalty[b]);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
