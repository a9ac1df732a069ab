#include "ops/tree_mask.h"

#include "tests/check.h"

using sparrow::tests::expect;

TEST(tree_mask_chain_of_65) {
  constexpr int n = 65;
  int32_t parent[n], depth[n];
  int64_t anc[n * 2];
  for (int i = 0; i < n; ++i) parent[i] = i - 1;
  sparrow::tree_mask_cpu({parent, anc, depth, 1, n}, 0, 1);
  for (int i = 0; i < n; ++i) {
    const uint64_t low = static_cast<uint64_t>(anc[2 * i]), high = static_cast<uint64_t>(anc[2 * i + 1]);
    expect(low == (i >= 63 ? ~uint64_t{0} : (uint64_t{2} << i) - 1), "low word");
    expect(high == (i == 64 ? 1u : 0u) && depth[i] == i, "high word and depth");
  }
}
