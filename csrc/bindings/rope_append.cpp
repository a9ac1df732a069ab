#include "ops/rope_append.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "rope_append";

RopeAppendParams take(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos_sin, const Tensor& slots,
                      const Tensor& k_cache, const Tensor& v_cache) {
  RopeAppendParams p{};
  check_tensors(kOp, {{"q", q, kWritten},
                      {"k", k},
                      {"v", v},
                      {"cos_sin", cos_sin},
                      {"slots", slots},
                      {"k_cache", k_cache, kWritten},
                      {"v_cache", v_cache, kWritten}});
  const Arg a{kOp, "q", q};
  a.floating().dim(4).last_dense();
  p.dtype = dtype_of(q);
  p.batch = q.size(0);
  p.nodes = q.size(1);
  p.heads = q.size(2);
  p.dim = q.size(3);
  check_that(p.dim % 2 == 0, kOp, "head_dim must be even, got ", p.dim);
  for (const Arg& x : {Arg{kOp, "k", k}, Arg{kOp, "v", v}}) {
    x.same_dtype(a).dim(4).size(0, p.batch, "B").size(1, p.nodes, "N");
    x.size(2, k.size(2), "K").size(3, p.dim, "D").last_dense();
  }
  p.kv_heads = k.size(2);
  const Arg angles{kOp, "cos_sin", cos_sin};
  angles.dtype({ScalarType::Float}).dim(3).size(0, p.batch, "B").size(1, p.nodes, "N");
  angles.size(2, p.dim, "D").contiguous();
  const Arg rows{kOp, "slots", slots};
  rows.dtype({ScalarType::Int}).dim(2).size(0, p.batch, "B").size(1, p.nodes, "N").contiguous();
  for (const Arg& c : {Arg{kOp, "k_cache", k_cache}, Arg{kOp, "v_cache", v_cache}}) {
    c.same_dtype(a).dim(4).size(0, p.batch, "B").size(1, k_cache.size(1), "Smax");
    c.size(2, p.kv_heads, "K").size(3, p.dim, "D").last_dense();
  }
  p.cos_sin = cos_sin.const_data_ptr<float>();
  p.slots = slots.const_data_ptr<int32_t>();
  p.cache_rows = k_cache.size(1);
  const auto three = [](const Tensor& t, int64_t& batch, int64_t& row, int64_t& head) {
    batch = t.stride(0);
    row = t.stride(1);
    head = t.stride(2);
  };
  p.q = q.mutable_data_ptr();
  three(q, p.q_b, p.q_n, p.q_h);
  p.k = k.const_data_ptr();
  three(k, p.k_b, p.k_n, p.k_h);
  p.v = v.const_data_ptr();
  three(v, p.v_b, p.v_n, p.v_h);
  p.k_cache = k_cache.mutable_data_ptr();
  three(k_cache, p.kc_b, p.kc_s, p.kc_h);
  p.v_cache = v_cache.mutable_data_ptr();
  three(v_cache, p.vc_b, p.vc_s, p.vc_h);
  return p;
}

}  // namespace

void rope_append_op_cpu(Tensor q, const Tensor& k, const Tensor& v, const Tensor& cos_sin, const Tensor& slots,
                        Tensor k_cache, Tensor v_cache) {
  const RopeAppendParams p = take(q, k, v, cos_sin, slots, k_cache, v_cache);
  for (int64_t i = 0; i < p.batch * p.nodes; ++i)
    check_that(p.slots[i] >= -1 && p.slots[i] < p.cache_rows, kOp, "slots[", i / p.nodes, "][", i % p.nodes,
               "] must lie in [-1, Smax = ", p.cache_rows, "), got ", p.slots[i]);
  if (p.nodes * p.dim == 0) return;
  run_items(rope_append_cpu, p, rope_append_items(p), /*grain=*/1 + 262144 / (p.nodes * p.dim));
}

#if defined(SPARROW_CUDA)
void rope_append_op_cuda(Tensor q, const Tensor& k, const Tensor& v, const Tensor& cos_sin, const Tensor& slots,
                         Tensor k_cache, Tensor v_cache) {
  const RopeAppendParams p = take(q, k, v, cos_sin, slots, k_cache, v_cache);
  check_grid(kOp, "B", p.batch);
  const OnDevice on(kOp, q);
  check_launch(kOp, rope_append_cuda(p, on.stream));
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "rope_append(Tensor(a!) q, Tensor k, Tensor v, Tensor cos_sin, Tensor slots, Tensor(b!) k_cache, "
      "Tensor(c!) v_cache) -> ()");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("rope_append", &sparrow::rope_append_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("rope_append", &sparrow::rope_append_op_cuda)); }
#endif
