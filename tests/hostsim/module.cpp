// The Python module `sparrow_hostsim`, in each simulated library: the simulator's control, and the host's pure functions
// (how work is cut, how much scratch it takes, what shares memory). Test-only: the operators need no Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bindings/overlap.h"
#include "kernels/attention_plan.h"
#include "ops/draft_attention.h"
#include "ops/hsr_project.h"
#include "ops/lm_head_topk.h"
#include "ops/sample_rows.h"
#include "ops/skinny_linear.h"
#include "ops/topk_lse.h"

namespace py = pybind11;

// control.cpp, which is built as the kernels of the mode are
void configure_simulator(uint64_t seed, int workers, int64_t shared_limit);
std::map<std::string, size_t> launched_kernels();

namespace {

// Dimensions from the innermost outwards: (count, stride in bytes).
sparrow::Block block(uintptr_t base, int64_t item, const std::vector<std::pair<int64_t, int64_t>>& dims) {
  sparrow::Block b;
  b.base = base;
  b.run = item;
  for (const auto& [count, stride] : dims) b.add(count, stride);
  return b;
}

int64_t times(const std::vector<int64_t>& counts) {
  int64_t n = 1;
  for (const int64_t c : counts) n = sparrow::product(n, c);
  return n;
}

void plans(py::module_& m) {
  m.attr("TILE_KEYS") = static_cast<int64_t>(sparrow::kTileKeys);
  m.attr("TOO_MANY") = sparrow::kTooMany;
  m.def("product", &times);
  m.def("attention_split_keys", &sparrow::attention_split_keys);
  m.def("attention_used_splits", &sparrow::attention_used_splits);
  m.def("attention_grid_splits", &sparrow::attention_grid_splits);
  m.def("attention_scratch_splits", &sparrow::attention_scratch_splits);
  m.attr("TIGHT_BYTES") = sparrow::kTightBytes;
  py::enum_<sparrow::AttentionFamily>(m, "Family")
      .value("few_rows", sparrow::AttentionFamily::few_rows)
      .value("rows64", sparrow::AttentionFamily::rows64)
      .value("rows128", sparrow::AttentionFamily::rows128)
      .value("rows256", sparrow::AttentionFamily::rows256);
  m.def("attention_family", &sparrow::attention_family);
  m.def("attention_blocks", &sparrow::attention_blocks);
  m.def("attention_stages", &sparrow::attention_stages);
  m.def("lm_head_lists", &sparrow::lm_head_lists);
  m.def("topk_cuda_lists", &sparrow::topk_cuda_lists);
}

void sizes(py::module_& m) {
  m.def("attention_workspace", &sparrow::attention_workspace);
  m.def("draft_attention_roped", &sparrow::draft_attention_roped);
  m.def("hsr_project_workspace", &sparrow::hsr_project_workspace_bytes);
  m.def("lm_head_topk_workspace", &sparrow::lm_head_topk_workspace_bytes);
  m.def("topk_lse_workspace", &sparrow::topk_lse_workspace_bytes);
  m.def("sample_rows_workspace", &sparrow::sample_rows_workspace_bytes);
  m.def("skinny_linear_workspace", &sparrow::skinny_linear_workspace_bytes);
}

}  // namespace

PYBIND11_MODULE(sparrow_hostsim, m) {
  m.def("configure", &configure_simulator, py::arg("seed") = 0, py::arg("workers") = 1,
        py::arg("shared_limit") = 99 * 1024);
  m.def("launched", &launched_kernels);
  py::class_<sparrow::Block>(m, "Block").def(py::init(&block));
  m.def("meet", &sparrow::meet);
  m.def("meets_itself", &sparrow::meets_itself);
  plans(m);
  sizes(m);
}
