#include "ops/repetition_penalty.h"

#include <cmath>

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "repetition_penalty";
constexpr int64_t kGrainElements = 1 << 19;  // vocabulary entries swept in about 20 us by one thread

void check_arguments(Tensor& logits, const Tensor& tokens, const Tensor& anc, const Tensor& seen, const Tensor& penalty,
                     RepetitionPenaltyParams& p) {
  check_tensors(kOp,
                {{"logits", logits, kWritten}, {"tokens", tokens}, {"anc", anc}, {"seen", seen}, {"penalty", penalty}});
  const Arg arg{kOp, "logits", logits};
  arg.dtype({ScalarType::Float}).dim(3).last_dense();
  p.batch = logits.size(0);
  p.nodes = logits.size(1);
  p.vocab = logits.size(2);
  p.stride_b = logits.stride(0);
  p.stride_n = logits.stride(1);
  if (p.nodes > kMaxNodes) refuse(kOp, "logits must have at most ", kMaxNodes, " nodes, got shape ", shape_of(logits));
  const auto check = [&](const char* name, const Tensor& t, ScalarType dtype, int64_t dim) {
    Arg{kOp, name, t}.dtype({dtype}).dim(dim).size(0, p.batch, "B").contiguous();
  };
  check("tokens", tokens, ScalarType::Long, 2);
  check("anc", anc, ScalarType::Long, 3);
  check("seen", seen, ScalarType::Bool, 2);
  check("penalty", penalty, ScalarType::Float, 1);
  Arg{kOp, "tokens", tokens}.size(1, p.nodes, "N");
  Arg{kOp, "anc", anc}.size(1, p.nodes, "N").size(2, words_for(p.nodes), "words of N nodes");
  Arg{kOp, "seen", seen}.size(1, p.vocab, "V");
  p.logits = logits.mutable_data_ptr<float>();
  p.tokens = tokens.const_data_ptr<int64_t>();
  p.anc = anc.const_data_ptr<int64_t>();
  p.seen = reinterpret_cast<const uint8_t*>(seen.const_data_ptr<bool>());
  p.penalty = penalty.const_data_ptr<float>();
}

void check_values(const RepetitionPenaltyParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    check_that(p.penalty[b] > 0.f && std::isfinite(p.penalty[b]), kOp, "penalty[", b,
               "] must be positive and finite, got ", p.penalty[b]);
    for (int64_t n = 0; n < p.nodes; ++n) {
      const int64_t token = p.tokens[b * p.nodes + n];
      check_that(token >= 0 && token < p.vocab, kOp, "tokens[", b, "][", n, "] must lie in [0, ", p.vocab, "), got ",
                 token);
    }
  }
}

}  // namespace

void repetition_penalty_op_cpu(Tensor logits, const Tensor& tokens, const Tensor& anc, const Tensor& seen,
                               const Tensor& penalty) {
  RepetitionPenaltyParams p{};
  check_arguments(logits, tokens, anc, seen, penalty, p);
  check_values(p);
  if (p.vocab == 0) return;
  run_items(repetition_penalty_cpu, p, p.batch * p.nodes, /*grain=*/1 + kGrainElements / p.vocab);
}

#if defined(SPARROW_CUDA)
void repetition_penalty_op_cuda(Tensor logits, const Tensor& tokens, const Tensor& anc, const Tensor& seen,
                                const Tensor& penalty) {
  RepetitionPenaltyParams p{};
  check_arguments(logits, tokens, anc, seen, penalty, p);
  const OnDevice on(kOp, logits);
  check_launch(kOp, repetition_penalty_cuda(p, on.stream));
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("repetition_penalty(Tensor(a!) logits, Tensor tokens, Tensor anc, Tensor seen, Tensor penalty) -> ()");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("repetition_penalty", &sparrow::repetition_penalty_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("repetition_penalty", &sparrow::repetition_penalty_op_cuda)); }
#endif
