#include "ops/argmax_rows.h"

#include "cpu/row_max.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

template <class T>
void run(const ArgmaxRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t offset = i / p.rows1 * p.stride0 + i % p.rows1 * p.stride1;
    p.out[i] = row_max(static_cast<const T*>(p.logits) + offset, p.vocab, nullptr).argmax();
  }
}

}  // namespace

void argmax_rows_cpu(const ArgmaxRowsParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32: return run<float>(p, begin, end);
    case DType::bf16: return run<bf16_t>(p, begin, end);
    case DType::f16: return run<f16_t>(p, begin, end);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
