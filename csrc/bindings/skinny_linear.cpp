#include "ops/skinny_linear.h"

#include <vector>

#include "bindings/checks.h"
#include "bindings/cuda.h"
#include "bindings/linear.h"
#include "bindings/rows.h"

namespace sparrow {
namespace {

constexpr const char *kOp = "skinny_linear", *kGroup = "skinny_linear_group";

// One weight with its bias, as messages name them.
struct Layer {
  Use weight, bias;
};
// Arrays, no vectors: a call takes 4 us, and each allocation is a hundredth of that.
struct LinearArgs {
  const char* op;
  const Tensor& x;
  int64_t count;
  Layer layers[kSkinnyWeights];  // beyond `count` without tensors

  const Tensor& weight(int64_t i) const { return *layers[i].weight.tensor; }
  int64_t width() const { return weight(0).size(1); }
  int64_t outputs() const {  // of all
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) n += weight(i).size(0);
    return n;
  }
};
const Use kAbsent{"", std::optional<Tensor>{}};
const Layer kNoLayer{kAbsent, kAbsent};

LinearArgs one(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return {kOp, x, 1, {{{"weight", weight}, {"bias", bias}}, kNoLayer, kNoLayer}};
}

LinearArgs group(const Tensor& x, const std::vector<Tensor>& weights,
                 const std::vector<std::optional<Tensor>>& biases) {
  constexpr const char* names[kSkinnyWeights][2] = {
      {"weights[0]", "biases[0]"}, {"weights[1]", "biases[1]"}, {"weights[2]", "biases[2]"}};
  check_that(!weights.empty() && weights.size() <= kSkinnyWeights, kGroup, "weights must hold 1 to ", kSkinnyWeights,
             " tensors, got ", weights.size());
  check_that(biases.size() == weights.size(), kGroup, "biases must hold one entry for each of the ", weights.size(),
             " weights, got ", biases.size());
  LinearArgs a{kGroup, x, static_cast<int64_t>(weights.size()), {kNoLayer, kNoLayer, kNoLayer}};
  for (size_t i = 0; i < weights.size(); ++i) a.layers[i] = {{names[i][0], weights[i]}, {names[i][1], biases[i]}};
  return a;
}

void check_layer(const LinearArgs& a, const Arg& x, const Layer& layer) {
  const Arg weight{a.op, layer.weight.name, *layer.weight.tensor};
  weight.same_dtype(x).dim(2).size(1, x.t.size(x.t.dim() - 1), "K, the last dimension of x").last_dense();
  if (!layer.bias.tensor) return;
  const std::string rule = std::string("rows of ") + weight.name;
  const Arg bias{a.op, layer.bias.name, *layer.bias.tensor};
  bias.same_dtype(x).dim(1).size(0, weight.t.size(0), rule.c_str()).contiguous();
}

// out, workspace: where they are the caller's.
void check_arguments(const LinearArgs& a, const Use& out = kAbsent, const Use& workspace = kAbsent) {
  static_assert(kSkinnyWeights == 3);
  const auto& [first, second, third] = a.layers;
  check_tensors(
      a.op,
      {{"x", a.x}, first.weight, first.bias, second.weight, second.bias, third.weight, third.bias, out, workspace});
  const Arg x{a.op, "x", a.x};
  x.floating();
  check_rows(x);
  for (int64_t i = 0; i < a.count; ++i) check_layer(a, x, a.layers[i]);
}

// Of skinny_linear_out. Returns the step between rows of out.
int64_t check_out(const LinearArgs& a, const Tensor& out, const Tensor& workspace) {
  const Arg x{kOp, "x", a.x}, arg{kOp, "out", out};
  arg.same_dtype(x).dim(a.x.dim());
  for (int64_t d = 0; d + 1 < a.x.dim(); ++d) arg.size(d, a.x.size(d), "that of x");
  arg.size(out.dim() - 1, a.outputs(), "rows of weight").last_dense();
  const int64_t step = row_step(out), rows = rows_in(a.x);
  if (rows > 1 && step < 0)
    refuse(kOp, "the rows of out must lie one step apart in memory, got strides ", strides_of(out));
  const int64_t bytes = check_bytes(kOp, skinny_linear_workspace_bytes(rows, a.width(), a.outputs()));
  take_bytes(kOp, workspace, bytes, /*alignment=*/1);  // aligned in make_params
  return step;
}

// Where results go: a tensor for each weight, all of them contiguous, or one with another step between its rows.
struct Out {
  const Tensor* tensors;
  int64_t step = 0;  // 0: contiguous
};

// x: a.x, or its copy where row_step(a.x) < 0.
SkinnyLinearParams make_params(const LinearArgs& a, const Tensor& x, const Out& out, void* scratch) {
  SkinnyLinearParams p{};
  p.x = x.const_data_ptr();
  p.packed = align_packed(scratch);
  p.rows = rows_in(x);
  p.width = a.width();
  p.x_stride = row_step(x);
  p.dtype = dtype_of(x);
  p.partial = static_cast<float*>(p.packed);
  for (int64_t i = 0; i < a.count; ++i) {
    const Tensor &weight = a.weight(i), *bias = a.layers[i].bias.tensor;
    const int64_t n = weight.size(0);
    p.part[i] = {weight.const_data_ptr(),
                 bias ? bias->const_data_ptr() : nullptr,
                 out.tensors[i].mutable_data_ptr(),
                 n,
                 weight.stride(0),
                 out.step ? out.step : n};
  }
  return p;
}

void run_cpu(const LinearArgs& a, const Out& out, void* scratch) {
  const Tensor x = with_even_rows(a.x);
  const SkinnyLinearParams all = make_params(a, x, out, scratch);
  const int64_t element = all.dtype == DType::f32 ? 4 : 2;
  SkinnyLinearParams p = all;
  const int64_t most = skinny_block(all.rows);
  for (int64_t begin = 0; begin < all.rows && all_outputs(all) > 0; begin += most) {
    p.rows = all.rows - begin < most ? all.rows - begin : most;
    p.x = static_cast<const char*>(all.x) + begin * all.x_stride * element;
    for (int i = 0; i < kSkinnyWeights; ++i)
      p.part[i].out = static_cast<char*>(all.part[i].out) + begin * all.part[i].out_stride * element;
    run_items(skinny_pack_cpu, p, pack_items(p.rows), /*grain=*/4);
    multiply_packed(p);
  }
}

#if defined(SPARROW_CUDA)
void run_cuda(const LinearArgs& a, const Out& out, void* scratch) {
  const Tensor x = with_even_rows(a.x);
  if (dtype_of(x) == DType::f32) check_grid(a.op, "M in float32", rows_in(x), 65535 * kPlainRows);
  check_grid(a.op, "K", a.width(), 65535 * kSkinnySplit);
  const OnDevice on(a.op, a.x);
  check_launch(a.op, skinny_linear_cuda(make_params(a, x, out, scratch), on.stream));
}
#endif

using Run = void (*)(const LinearArgs&, const Out&, void*);

// A new tensor [..., N] for weight i.
Tensor empty_out(const LinearArgs& a, int64_t i) {
  int64_t shape[8];
  for (int64_t d = 0; d + 1 < a.x.dim(); ++d) shape[d] = a.x.size(d);
  shape[a.x.dim() - 1] = a.weight(i).size(0);
  return empty(a.op, a.x, shape, a.x.dim(), a.x.scalar_type());
}

// With scratch of its own.
template <Run run>
void call(const LinearArgs& a, const Tensor* out) {
  const int64_t bytes = skinny_linear_workspace_bytes(rows_in(a.x), a.width(), a.outputs());
  const Tensor scratch = empty(a.op, a.x, {bytes}, ScalarType::Byte);
  run(a, {out}, scratch.mutable_data_ptr());
}

template <Run run>
Tensor skinny_linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const LinearArgs a = one(x, weight, bias);
  check_arguments(a);
  const Tensor out = empty_out(a, 0);
  call<run>(a, &out);
  return out;
}

template <Run run>
void skinny_linear_out_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out,
                          const Tensor& workspace) {
  const LinearArgs a = one(x, weight, bias);
  check_arguments(a, {"out", out, kWritten}, {"workspace", workspace, kWritten});
  const int64_t step = check_out(a, out, workspace);
  run(a, {&out, step}, workspace.mutable_data_ptr());
}

template <Run run>
std::vector<Tensor> skinny_linear_group_op(const Tensor& x, const std::vector<Tensor>& weights,
                                           const std::vector<std::optional<Tensor>>& biases) {
  const LinearArgs a = group(x, weights, biases);
  check_arguments(a);
  std::vector<Tensor> out;
  for (int64_t i = 0; i < a.count; ++i) out.push_back(empty_out(a, i));
  call<run>(a, out.data());
  return out;
}

}  // namespace

int64_t skinny_linear_workspace_size_op(int64_t rows, int64_t width, int64_t outputs) {
  constexpr const char* op = "skinny_linear_workspace_size";
  check_count(op, "M", rows);
  check_count(op, "K", width);
  check_count(op, "N", outputs);
  return check_bytes(op, skinny_linear_workspace_bytes(rows, width, outputs));
}

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def("skinny_linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("skinny_linear_out(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def("skinny_linear_group(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor[]");
  m.def("skinny_linear_workspace_size(int M, int K, int N) -> int");
}
SPARROW_CPU_IMPL(m) {
  m.impl(SPARROW_BOX("skinny_linear", &sparrow::skinny_linear_op<sparrow::run_cpu>));
  m.impl(SPARROW_BOX("skinny_linear_out", &sparrow::skinny_linear_out_op<sparrow::run_cpu>));
  m.impl(SPARROW_BOX("skinny_linear_group", &sparrow::skinny_linear_group_op<sparrow::run_cpu>));
}
SPARROW_COMPOSITE_IMPL(m) {
  m.impl(SPARROW_BOX("skinny_linear_workspace_size", &sparrow::skinny_linear_workspace_size_op));
}
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) {
  m.impl(SPARROW_BOX("skinny_linear", &sparrow::skinny_linear_op<sparrow::run_cuda>));
  m.impl(SPARROW_BOX("skinny_linear_out", &sparrow::skinny_linear_out_op<sparrow::run_cuda>));
  m.impl(SPARROW_BOX("skinny_linear_group", &sparrow::skinny_linear_group_op<sparrow::run_cuda>));
}
#endif
