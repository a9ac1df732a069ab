#include "ops/tree_accept.h"

namespace sparrow {
namespace SPARROW_ISA {

void tree_accept_cpu(const TreeAcceptParams& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t* tokens = p.tokens + b * p.nodes;
    const int32_t* parent = p.parent + b * p.nodes;
    const int64_t* target = p.target + b * p.nodes;
    const int64_t nodes = p.num_nodes ? p.num_nodes[b] : p.nodes;
    int32_t* path = p.path + b * p.max_path;
    int64_t* out = p.out_tokens + b * p.max_path;
    int64_t length = 0;
    if (nodes > 0) {
      int64_t at = 0, choice = target[0];
      path[0] = 0;
      out[0] = choice;
      length = 1;
      for (int64_t i = 1; i < nodes && length < p.max_path; ++i) {
        if (parent[i] != at || tokens[i] != choice) continue;
        at = i;
        choice = target[i];
        path[length] = static_cast<int32_t>(i);
        out[length] = choice;
        ++length;
      }
    }
    p.num_path[b] = static_cast<int32_t>(length);
    for (int64_t j = length; j < p.max_path; ++j) {
      path[j] = -1;
      out[j] = -1;
    }
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
