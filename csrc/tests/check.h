// The C++ tests: kernel checks that need no torch, so any sanitizer and debugger can run them.
//   TEST(name) { expect(sum == 3, "one and two"); }      runs once per instruction set of the machine
#pragma once
#include <cstdint>

#include "ops/common.h"

namespace sparrow::tests {

void add(const char* name, void (*run)());
// Counts and prints a failure, naming the test, `what` and the instruction set.
void expect(bool ok, const char* what);

struct Registration {
  Registration(const char* name, void (*run)()) { add(name, run); }
};

}  // namespace sparrow::tests

#define TEST(name)                                                            \
  static void name();                                                         \
  static const sparrow::tests::Registration name##_registration(#name, name); \
  static void name()
