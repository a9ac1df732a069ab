#include "kernels/attention_plan.h"
#include "tests/check.h"

using sparrow::tests::expect;

// Every prefix is cut into splits that cover it, fit the grid of any longer bound and fit the scratch.
TEST(attention_plan_splits) {
  constexpr int64_t kWishes[] = {0, 1, 50, 64, 100000};
  for (const int64_t wish : kWishes)
    for (int64_t bound = 0; bound < 70000; bound += 1 + bound / 7)
      for (int64_t prefix = 0; prefix <= bound; prefix += 1 + prefix / 3) {
        const int64_t keys = sparrow::attention_split_keys(prefix, wish);
        const int64_t used = sparrow::attention_used_splits(prefix, wish);
        expect(used * keys >= prefix && (used == 1 || (used - 1) * keys < prefix), "splits cover the prefix");
        expect(used <= sparrow::attention_grid_splits(bound, wish), "the grid has a block for each");
        expect(sparrow::attention_grid_splits(bound, wish) <= sparrow::attention_scratch_splits(bound, wish),
               "scratch");
        expect(wish > 0 || keys % sparrow::kTileKeys == 0, "own splits are whole tiles");
      }
}

TEST(attention_plan_stages) {
  constexpr int64_t kRow = 256, kStage = 2 * sparrow::kTileKeys * kRow;  // head_dim 128, 16 bit
  const auto stages = [](int rows, int warps, int64_t limit) {
    return sparrow::attention_stages(rows * kRow, kStage, sparrow::attention_blocks(warps), limit * 1024);
  };
  expect(stages(64, 4, 227) == 3 && stages(128, 8, 227) == 4, "sm_90: two blocks of 64 rows, one of 128");
  expect(stages(64, 4, 163) == 2 && stages(128, 8, 163) == 4, "sm_80");
  expect(stages(64, 4, 99) == 2 && stages(128, 8, 99) == 2, "sm_89");
  expect(128 * kRow + 2 * kStage <= 99 * 1024, "the largest block fits the smallest limit");
}
