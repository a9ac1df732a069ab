#include "ops/tree_expand.h"

#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

// The best candidates so far, best first. Candidates arrive in ascending order, so an equal score goes behind.
struct Beam {
  float score[kMaxNodes];
  int32_t candidate[kMaxNodes];
  int64_t size = 0;
};

SPARROW_INLINE void insert(Beam& best, int64_t capacity, float score, int64_t candidate) {
  if (best.size == capacity && !(score > best.score[capacity - 1])) return;
  int64_t at = best.size < capacity ? best.size++ : capacity - 1;
  for (; at > 0 && best.score[at - 1] < score; --at) {
    best.score[at] = best.score[at - 1];
    best.candidate[at] = best.candidate[at - 1];
  }
  best.score[at] = score;
  best.candidate[at] = static_cast<int32_t>(candidate);
}

// Writes one beam row's candidates to the history and offers them to the next beam.
void offer_row(const TreeExpandParams& p, int64_t b, int64_t t, Beam& best) {
  const float* logp = p.logp + b * p.logp_batch + t * p.logp_row;
  const int64_t* ids = p.ids + b * p.ids_batch + t * p.ids_row;
  const float parent_score = p.beam_score[b * p.rows + t];
  const int32_t parent = p.beam_index[b * p.rows + t];
  const int64_t at = b * p.history + p.slot + t * p.k;
  for (int64_t j = 0; j < p.k; ++j) {
    const float sum = parent_score + logp[j];
    const float score = sum != sum ? -__builtin_inff() : sum < parent_score ? sum : parent_score;
    p.hist_score[at + j] = score;
    p.hist_id[at + j] = ids[j];
    p.hist_parent[at + j] = parent;
    insert(best, p.beam, score, t * p.k + j);
  }
}

void write_beam(const TreeExpandParams& p, int64_t b, const Beam& best) {
  for (int64_t r = 0; r < p.beam; ++r) {
    const int64_t c = best.candidate[r], t = c / p.k, out = b * p.beam + r, bit = p.level * p.beam + r;
    p.token_ids[out] = p.ids[b * p.ids_batch + t * p.ids_row + c % p.k];
    p.row_index[out] = static_cast<int32_t>(b * p.rows + t);
    p.score[out] = best.score[r];
    p.index[out] = static_cast<int32_t>(p.slot + c);
    const int64_t* from = p.beam_anc + (b * p.rows + t) * p.words;
    int64_t* anc = p.anc + out * p.words;
    for (int64_t w = 0; w < p.words; ++w) anc[w] = from[w];
    anc[bit / kWordBits] =
        static_cast<int64_t>(static_cast<uint64_t>(anc[bit / kWordBits]) | uint64_t{1} << (bit % kWordBits));
  }
}

}  // namespace

void tree_expand_cpu(const TreeExpandParams& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    Beam best;
    for (int64_t t = 0; t < p.rows; ++t) offer_row(p, b, t, best);
    write_beam(p, b, best);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
