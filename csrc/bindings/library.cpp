// The library itself: what the CPU kernels were told to use. The operators are in <op>.cpp, one fragment each.
#include "bindings/checks.h"

namespace sparrow {

std::string cpu_isa_op() { return isa_name(cpu_isa()); }

void set_cpu_isa_op(std::string name) {
  check_that(set_cpu_isa(name.c_str()), "set_cpu_isa",
             "name must be generic, avx2, avx512 or avx512_bf16 and supported by this CPU, got ", name);
}

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparrow, CompositeExplicitAutograd, m) {
  m.impl(SPARROW_BOX("cpu_isa", &sparrow::cpu_isa_op));
  m.impl(SPARROW_BOX("set_cpu_isa", &sparrow::set_cpu_isa_op));
}
