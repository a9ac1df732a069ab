// Kernel checks that need no torch: run them under any sanitizer. Exit code = number of failures.
#include <cstdio>

#include "ops/tree_mask.h"

namespace {

int failures = 0;

void expect(bool ok, const char* what, const char* isa) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s (%s)\n", what, isa);
}

void chain_of_65(const char* isa) {
  constexpr int n = 65;
  int32_t parent[n], depth[n];
  int64_t anc[n * 2];
  for (int i = 0; i < n; ++i) parent[i] = i - 1;
  sparrow::tree_mask_cpu({parent, anc, depth, 1, n}, 0, 1);
  for (int i = 0; i < n; ++i) {
    const uint64_t low = static_cast<uint64_t>(anc[2 * i]), high = static_cast<uint64_t>(anc[2 * i + 1]);
    expect(low == (i >= 63 ? ~uint64_t{0} : (uint64_t{2} << i) - 1), "chain: low word", isa);
    expect(high == (i == 64 ? 1u : 0u) && depth[i] == i, "chain: high word and depth", isa);
  }
}

}  // namespace

int main() {
  for (const char* isa : {"generic", "avx2", "avx512"}) {
    if (!sparrow::set_cpu_isa(isa)) {
      std::printf("%s: not on this machine\n", isa);
      continue;
    }
    chain_of_65(isa);
  }
  std::printf("%d failures\n", failures);
  return failures;
}
