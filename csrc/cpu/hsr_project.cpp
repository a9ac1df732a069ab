#include "ops/hsr_project.h"

#include "cpu/skinny_gemm.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

template <class T>
void pack(const HsrProjectParams& p, int64_t begin, int64_t end) {
  const auto fill = [&](const PackedRow<T>& row, int64_t m) {
    const int64_t h = p.row_index[m];
    row.put(0, static_cast<const T*>(p.embed) + p.token_ids[m] * p.embed_stride, p.embed_width);
    row.put(p.embed_width, h < 0 ? nullptr : static_cast<const T*>(p.hidden) + h * p.hidden_stride, p.hidden_width);
  };
  for (int64_t item = begin; item < end; ++item)
    pack_rows<T>(p.packed, p.rows, p.embed_width + p.hidden_width, item, fill);
}

}  // namespace

void hsr_pack_cpu(const HsrProjectParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) return pack<float>(p, begin, end);
  if (p.dtype == DType::bf16) return pack<bf16_t>(p, begin, end);
  pack<f16_t>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
