#include "ops/text_compact.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "text_compact";
constexpr int64_t kRowsPerThread = 256 << 10;

std::tuple<Tensor, Tensor> allocate(const Tensor& is_text, const Tensor& seq_lens, int64_t max_text,
                                    TextCompactParams& p) {
  check_count(kOp, "max_text", max_text);
  check_tensors(kOp, {{"is_text", is_text}, {"seq_lens", seq_lens}});
  const Arg a{kOp, "is_text", is_text};
  a.dtype({ScalarType::Bool}).dim(2);
  p.batch = is_text.size(0);
  p.rows = is_text.size(1);
  p.max_text = max_text;
  Arg{kOp, "seq_lens", seq_lens}.dtype({ScalarType::Int}).dim(1).size(0, p.batch, "B").contiguous();
  a.last_dense();
  Tensor index = empty(kOp, is_text, {p.batch, max_text}, ScalarType::Int);
  Tensor count = empty(kOp, is_text, {p.batch}, ScalarType::Int);
  p.is_text = static_cast<const uint8_t*>(is_text.const_data_ptr());
  p.batch_stride = is_text.stride(0);
  p.seq_lens = seq_lens.const_data_ptr<int32_t>();
  p.index = index.mutable_data_ptr<int32_t>();
  p.count = count.mutable_data_ptr<int32_t>();
  return {index, count};
}

}  // namespace

std::tuple<Tensor, Tensor> text_compact_op_cpu(const Tensor& is_text, const Tensor& seq_lens, int64_t max_text) {
  TextCompactParams p{};
  auto out = allocate(is_text, seq_lens, max_text, p);
  const int64_t rows = p.rows;
  for (int64_t b = 0; b < p.batch; ++b) {
    check_that(p.seq_lens[b] >= 0 && p.seq_lens[b] <= rows, kOp, "seq_lens[", b, "] must lie in [0, ", rows, "], got ",
               p.seq_lens[b]);
  }
  run_items(text_compact_cpu, p, p.batch, 1 + kRowsPerThread / (1 + rows));
  for (int64_t b = 0; b < p.batch; ++b) {
    check_that(p.count[b] <= max_text, kOp, "max_text = ", max_text, " must hold the text rows of each sequence, but ",
               "sequence ", b, " has ", p.count[b]);
  }
  return out;
}

#if defined(SPARROW_CUDA)
std::tuple<Tensor, Tensor> text_compact_op_cuda(const Tensor& is_text, const Tensor& seq_lens, int64_t max_text) {
  TextCompactParams p{};
  auto out = allocate(is_text, seq_lens, max_text, p);
  const OnDevice on(kOp, is_text);
  check_launch(kOp, text_compact_cuda(p, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("text_compact(Tensor is_text, Tensor seq_lens, int max_text) -> (Tensor index, Tensor count)");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("text_compact", &sparrow::text_compact_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("text_compact", &sparrow::text_compact_op_cuda)); }
#endif
