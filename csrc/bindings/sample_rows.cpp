#include "ops/sample_rows.h"

#include <cmath>

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "sample_rows";
constexpr int64_t kGrainElements = 1 << 16;  // about 30 us of one thread

void check_per_sequence(const char* name, const Tensor& t, ScalarType dtype, int64_t batch) {
  Arg{kOp, name, t}.dtype({dtype}).dim(1).size(0, batch, "B").contiguous();
}

// Everything but the values, the scratch and the output.
SampleRowsParams checked(const Tensor& logits, const Tensor& temperature, const Tensor& seed, const Tensor& position,
                         const std::optional<Tensor>& top_k, const std::optional<Tensor>& top_p) {
  check_tensors(kOp, {{"logits", logits},
                      {"temperature", temperature},
                      {"seed", seed},
                      {"position", position},
                      {"top_k", top_k},
                      {"top_p", top_p}});
  SampleRowsParams p{};
  const Arg arg{kOp, "logits", logits};
  arg.floating().dim(3).last_dense();
  p.batch = logits.size(0);
  p.nodes = logits.size(1);
  p.vocab = logits.size(2);
  if (p.vocab == 0) refuse(kOp, "logits must have a vocabulary in [1, 2^31), got shape ", shape_of(logits));
  check_per_sequence("temperature", temperature, ScalarType::Float, p.batch);
  check_per_sequence("seed", seed, ScalarType::Long, p.batch);
  Arg{kOp, "position", position}
      .dtype({ScalarType::Long})
      .dim(2)
      .size(0, p.batch, "B")
      .size(1, p.nodes, "N")
      .contiguous();
  if (top_k) check_per_sequence("top_k", *top_k, ScalarType::Int, p.batch);
  if (top_p) check_per_sequence("top_p", *top_p, ScalarType::Float, p.batch);
  p.dtype = dtype_of(logits);
  p.stride_b = logits.stride(0);
  p.stride_n = logits.stride(1);
  p.logits = logits.const_data_ptr();
  p.temperature = temperature.const_data_ptr<float>();
  p.seed = seed.const_data_ptr<int64_t>();
  p.position = position.const_data_ptr<int64_t>();
  p.top_k = top_k ? top_k->const_data_ptr<int32_t>() : nullptr;
  p.top_p = top_p ? top_p->const_data_ptr<float>() : nullptr;
  return p;
}

void check_values(const SampleRowsParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const float t = p.temperature[b];
    check_that(t == 0.f || (t >= kMinTemperature && std::isfinite(t)), kOp, "temperature[", b,
               "] must be 0 (argmax) or finite and at least ", kMinTemperature, ", got ", t);
    check_that(p.top_k == nullptr || p.top_k[b] >= 0, kOp, "top_k[", b, "] must be 0 (off) or positive, got ",
               p.top_k == nullptr ? 0 : p.top_k[b]);
    check_that(p.top_p == nullptr || (p.top_p[b] >= 0.f && p.top_p[b] <= 1.f), kOp, "top_p[", b,
               "] must lie in [0, 1] (1 = off), got ", p.top_p == nullptr ? 1.f : p.top_p[b]);
  }
}

void run(SampleRowsParams p, char* scratch) {
  check_values(p);
  p.block_max = reinterpret_cast<float*>(scratch);
  run_items(sample_rows_cpu, p, p.batch * p.nodes, /*grain=*/1 + kGrainElements / p.vocab);
}

// The form that allocates; run_on(p, scratch) is the backend's.
template <class Run>
Tensor allocate_and(const Run& run_on, const Tensor& logits, SampleRowsParams p) {
  const Tensor out = empty(kOp, logits, {p.batch, p.nodes}, ScalarType::Long);
  const int64_t bytes = sample_rows_workspace_bytes(p.batch * p.nodes, p.vocab);
  const Tensor scratch = empty(kOp, logits, {bytes}, ScalarType::Byte);
  p.out = out.mutable_data_ptr<int64_t>();
  run_on(p, static_cast<char*>(scratch.mutable_data_ptr()));
  return out;
}

}  // namespace

Tensor sample_rows_op_cpu(const Tensor& logits, const Tensor& temperature, const Tensor& seed, const Tensor& position,
                          const std::optional<Tensor>& top_k, const std::optional<Tensor>& top_p) {
  return allocate_and(run, logits, checked(logits, temperature, seed, position, top_k, top_p));
}

#if defined(SPARROW_CUDA)
Tensor sample_rows_op_cuda(const Tensor& logits, const Tensor& temperature, const Tensor& seed, const Tensor& position,
                           const std::optional<Tensor>& top_k, const std::optional<Tensor>& top_p) {
  return allocate_and(
      [&](const SampleRowsParams& p, char* scratch) {
        const OnDevice on(kOp, logits);
        check_launch(kOp, sample_rows_cuda(p, scratch, on.stream));
      },
      logits, checked(logits, temperature, seed, position, top_k, top_p));
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "sample_rows(Tensor logits, Tensor temperature, Tensor seed, Tensor position, Tensor? top_k=None, "
      "Tensor? top_p=None) -> Tensor");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("sample_rows", &sparrow::sample_rows_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("sample_rows", &sparrow::sample_rows_op_cuda)); }
#endif
