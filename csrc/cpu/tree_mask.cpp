#include "ops/tree_mask.h"

namespace sparrow {
namespace SPARROW_ISA {

void tree_mask_cpu(const TreeMaskParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.nodes, words = words_for(n);
  for (int64_t b = begin; b < end; ++b) {
    const int32_t* parent = p.parent + b * n;
    int32_t* depth = p.depth + b * n;
    uint64_t* anc = reinterpret_cast<uint64_t*>(p.anc) + b * n * words;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t up = parent[i];
      for (int64_t w = 0; w < words; ++w) anc[i * words + w] = up < 0 ? 0 : anc[up * words + w];
      anc[i * words + i / kWordBits] |= uint64_t{1} << (i % kWordBits);
      depth[i] = up < 0 ? 0 : depth[up] + 1;
    }
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
