#include "ops/tree_expand.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "tree_expand";

using Beam = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

void sizes_and_limits(const Arg& logp, const Arg& anc, int64_t level, int64_t beam, const Arg& hist,
                      TreeExpandParams& p) {
  p.batch = logp.t.size(0);
  p.rows = logp.t.size(1);
  p.k = logp.t.size(2);
  p.level = level;
  p.beam = beam;
  p.words = anc.t.size(2);
  p.history = hist.t.size(1);
  const int64_t rows = level == 0 ? 1 : beam, candidates = product(p.rows, p.k);
  if (p.rows != rows)
    refuse(kOp, "logp must have ", rows, " rows (1 at level 0, then beam), got shape ", shape_of(logp.t));
  check_that(beam <= candidates, kOp, "beam must lie in [1, T k] = [1, ", candidates, "], got ", beam);
  if (p.words > words_for(kMaxNodes))
    refuse(kOp, "beam_anc must have at most ", words_for(kMaxNodes), " words, got shape ", shape_of(anc.t));
  check_that(level < p.words * kWordBits / beam, kOp, "the (level + 1) * beam slots of level ", level, " and beam ",
             beam, " must fit into the ", p.words, " words of beam_anc");
  p.slot = level == 0 ? 0 : p.k + product(level - 1, beam, p.k);
  if (p.slot + candidates > p.history)
    refuse(kOp, "hist_score must have at least ", p.slot + candidates, " entries (C), got shape ", shape_of(hist.t));
}

void check_layout(const Arg& logp, const Arg& ids, const Arg& score, const Arg& index, const Arg& anc,
                  const Arg& hist_score, const Arg& hist_id, const Arg& hist_parent, int64_t level, int64_t beam,
                  TreeExpandParams& p) {
  for (const Arg* a : {&logp, &score, &hist_score}) a->dtype({ScalarType::Float});
  for (const Arg* a : {&ids, &anc, &hist_id}) a->dtype({ScalarType::Long});
  for (const Arg* a : {&index, &hist_parent}) a->dtype({ScalarType::Int});
  for (const Arg* a : {&logp, &ids, &anc}) a->dim(3);
  for (const Arg* a : {&score, &index, &hist_score, &hist_id, &hist_parent}) a->dim(2);
  sizes_and_limits(logp, anc, level, beam, hist_score, p);
  for (const Arg* a : {&ids, &score, &index, &anc}) a->size(0, p.batch, "B").size(1, p.rows, "T");
  ids.size(2, p.k, "k");
  for (const Arg* a : {&hist_score, &hist_id, &hist_parent}) a->size(0, p.batch, "B").size(1, p.history, "C");
  logp.last_dense();
  ids.last_dense();
  for (const Arg* a : {&score, &index, &anc, &hist_score, &hist_id, &hist_parent}) a->contiguous();
}

Beam allocate(const Tensor& like, TreeExpandParams& p) {
  Beam out{empty(kOp, like, {p.batch, p.beam}, ScalarType::Long), empty(kOp, like, {p.batch, p.beam}, ScalarType::Int),
           empty(kOp, like, {p.batch, p.beam}, ScalarType::Float), empty(kOp, like, {p.batch, p.beam}, ScalarType::Int),
           empty(kOp, like, {p.batch, p.beam, p.words}, ScalarType::Long)};
  p.token_ids = std::get<0>(out).mutable_data_ptr<int64_t>();
  p.row_index = std::get<1>(out).mutable_data_ptr<int32_t>();
  p.score = std::get<2>(out).mutable_data_ptr<float>();
  p.index = std::get<3>(out).mutable_data_ptr<int32_t>();
  p.anc = std::get<4>(out).mutable_data_ptr<int64_t>();
  return out;
}

// A candidate's parent lies in an earlier level.
void check_beam_index(const TreeExpandParams& p) {
  for (int64_t i = 0; i < p.batch * p.rows; ++i) {
    const int32_t at = p.beam_index[i];
    check_that(at >= -1 && at < p.slot, kOp, "beam_index[", i / p.rows, "][", i % p.rows, "] must lie in [-1, ", p.slot,
               "), got ", at);
  }
}

// Everything but the values of beam_index and the outputs.
TreeExpandParams checked(const Tensor& logp, const Tensor& ids, const Tensor& beam_score, const Tensor& beam_index,
                         const Tensor& beam_anc, int64_t level, int64_t beam, const Tensor& hist_score,
                         const Tensor& hist_id, const Tensor& hist_parent, const std::optional<Tensor>& error) {
  check_count(kOp, "level", level);
  check_count(kOp, "beam", beam, 1, kMaxNodes);
  check_tensors(kOp, {{"logp", logp},
                      {"ids", ids},
                      {"beam_score", beam_score},
                      {"beam_index", beam_index},
                      {"beam_anc", beam_anc},
                      {"hist_score", hist_score, kWritten},
                      {"hist_id", hist_id, kWritten},
                      {"hist_parent", hist_parent, kWritten},
                      {"error", error, kWritten}});
  TreeExpandParams p{};
  p.error = take_error(kOp, error);
  check_layout({kOp, "logp", logp}, {kOp, "ids", ids}, {kOp, "beam_score", beam_score}, {kOp, "beam_index", beam_index},
               {kOp, "beam_anc", beam_anc}, {kOp, "hist_score", hist_score}, {kOp, "hist_id", hist_id},
               {kOp, "hist_parent", hist_parent}, level, beam, p);
  p.logp = logp.const_data_ptr<float>();
  p.logp_batch = logp.stride(0);
  p.logp_row = logp.stride(1);
  p.ids = ids.const_data_ptr<int64_t>();
  p.ids_batch = ids.stride(0);
  p.ids_row = ids.stride(1);
  p.beam_score = beam_score.const_data_ptr<float>();
  p.beam_index = beam_index.const_data_ptr<int32_t>();
  p.beam_anc = beam_anc.const_data_ptr<int64_t>();
  p.hist_score = hist_score.mutable_data_ptr<float>();
  p.hist_id = hist_id.mutable_data_ptr<int64_t>();
  p.hist_parent = hist_parent.mutable_data_ptr<int32_t>();
  return p;
}

}  // namespace

Beam tree_expand_op_cpu(const Tensor& logp, const Tensor& ids, const Tensor& beam_score, const Tensor& beam_index,
                        const Tensor& beam_anc, int64_t level, int64_t beam, Tensor hist_score, Tensor hist_id,
                        Tensor hist_parent, const std::optional<Tensor>& error) {
  TreeExpandParams p =
      checked(logp, ids, beam_score, beam_index, beam_anc, level, beam, hist_score, hist_id, hist_parent, error);
  check_beam_index(p);
  Beam out = allocate(logp, p);
  run_items(tree_expand_cpu, p, p.batch, /*grain=*/16);
  return out;
}

#if defined(SPARROW_CUDA)
Beam tree_expand_op_cuda(const Tensor& logp, const Tensor& ids, const Tensor& beam_score, const Tensor& beam_index,
                         const Tensor& beam_anc, int64_t level, int64_t beam, Tensor hist_score, Tensor hist_id,
                         Tensor hist_parent, const std::optional<Tensor>& error) {
  TreeExpandParams p =
      checked(logp, ids, beam_score, beam_index, beam_anc, level, beam, hist_score, hist_id, hist_parent, error);
  Beam out = allocate(logp, p);
  const OnDevice on(kOp, logp);
  check_launch(kOp, tree_expand_cuda(p, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "tree_expand(Tensor logp, Tensor ids, Tensor beam_score, Tensor beam_index, Tensor beam_anc, int level, "
      "int beam, Tensor(a!) hist_score, Tensor(b!) hist_id, Tensor(c!) hist_parent, "
      "Tensor(d!)? error=None) "
      "-> (Tensor token_ids, Tensor row_index, Tensor score, Tensor index, Tensor anc)");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("tree_expand", &sparrow::tree_expand_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("tree_expand", &sparrow::tree_expand_op_cuda)); }
#endif
