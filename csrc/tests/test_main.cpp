// Exit code 1 where a check failed.
#include <cstdio>
#include <vector>

#include "tests/check.h"

namespace sparrow::tests {
namespace {

struct Case {
  const char* name;
  void (*run)();
};

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

const char* current = "";
int checks = 0, failures = 0;

}  // namespace

void add(const char* name, void (*run)()) { cases().push_back({name, run}); }

void expect(bool ok, const char* what) {
  ++checks;
  if (ok) return;
  ++failures;
  std::printf("FAIL %s: %s (%s)\n", current, what, isa_name(cpu_isa()));
}

}  // namespace sparrow::tests

int main() {
  using namespace sparrow::tests;
  for (const char* isa : {"generic", "avx2", "avx512", "avx512_bf16"}) {
    if (!sparrow::set_cpu_isa(isa)) {
      std::printf("%s: not on this machine\n", isa);
      continue;
    }
    for (const Case& c : cases()) {
      current = c.name;
      c.run();
    }
  }
  std::printf("%zu tests, %d checks, %d failures\n", cases().size(), checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}
