#include "ops/hsr_project.h"

#include <cstring>

#include "bindings/checks.h"
#include "bindings/linear.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "hsr_project";

struct HsrArgs {
  const Tensor& token_ids;
  const Tensor& row_index;
  const Tensor& embed;
  const Tensor& hidden;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& num_rows;
};

void check_layout(const HsrArgs& a) {
  const Arg token_ids{kOp, "token_ids", a.token_ids}, row_index{kOp, "row_index", a.row_index};
  const Arg embed{kOp, "embed", a.embed}, hidden{kOp, "hidden", a.hidden}, weight{kOp, "weight", a.weight};
  token_ids.dtype({ScalarType::Long}).dim(1).contiguous();
  row_index.same_device(token_ids).dtype({ScalarType::Int}).dim(1).size(0, a.token_ids.size(0), "M").contiguous();
  weight.same_device(token_ids).floating().dim(2);
  embed.same_device(token_ids).same_dtype(weight).dim(2).last_dense();
  hidden.same_device(token_ids).same_dtype(weight).dim(2).last_dense();
  weight.size(1, a.embed.size(1) + a.hidden.size(1), "columns of embed + columns of hidden").last_dense();
  if (a.bias) {
    const Arg bias{kOp, "bias", *a.bias};
    bias.same_device(token_ids).same_dtype(weight).dim(1).size(0, a.weight.size(0), "rows of weight").contiguous();
  }
  if (a.num_rows) {
    const Arg num_rows{kOp, "num_rows", *a.num_rows};
    num_rows.same_device(token_ids).dtype({ScalarType::Int}).dim(1).size(0, 1, "one count").contiguous();
  }
}

// The values: num_rows in [0, M]; ids and rows of the valid rows inside their tables. Returns the valid rows.
int64_t check_values(const HsrArgs& a) {
  const int64_t m = a.token_ids.size(0), vocab = a.embed.size(0), hidden_rows = a.hidden.size(0);
  const int64_t valid = a.num_rows ? *a.num_rows->const_data_ptr<int32_t>() : m;
  check_that(valid >= 0 && valid <= m, kOp, "num_rows must lie in [0, ", m, "], got ", valid);
  const int64_t* ids = a.token_ids.const_data_ptr<int64_t>();
  const int32_t* rows = a.row_index.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < valid; ++i) {
    check_that(ids[i] >= 0 && ids[i] < vocab, kOp, "token_ids[", i, "] must lie in [0, ", vocab, "), got ", ids[i]);
    check_that(rows[i] >= -1 && rows[i] < hidden_rows, kOp, "row_index[", i, "] must lie in [-1, ", hidden_rows,
               "), got ", rows[i]);
  }
  return valid;
}

HsrProjectParams make_params(const HsrArgs& a, const Tensor& out, int64_t valid, void* scratch) {
  HsrProjectParams p;
  p.token_ids = a.token_ids.const_data_ptr<int64_t>();
  p.row_index = a.row_index.const_data_ptr<int32_t>();
  p.embed = a.embed.const_data_ptr();
  p.hidden = a.hidden.const_data_ptr();
  p.weight = a.weight.const_data_ptr();
  p.bias = a.bias ? a.bias->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.packed = align_packed(scratch);
  p.rows = valid;
  p.embed_width = a.embed.size(1), p.hidden_width = a.hidden.size(1), p.outputs = a.weight.size(0);
  p.embed_stride = a.embed.stride(0), p.hidden_stride = a.hidden.stride(0), p.weight_stride = a.weight.stride(0);
  p.out_stride = out.stride(0);
  p.dtype = dtype_of(a.weight);
  return p;
}

// Concatenates rows [begin, begin + count) as they are into p.packed: the library's activations.
void concatenate(const HsrProjectParams& p, int64_t begin, int64_t count) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  const int64_t left = p.embed_width * element, right = p.hidden_width * element;
  torch::stable::parallel_for(0, count, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      char* row = static_cast<char*>(p.packed) + i * (left + right);
      const int64_t h = p.row_index[begin + i];
      std::memcpy(row, static_cast<const char*>(p.embed) + p.token_ids[begin + i] * p.embed_stride * element, left);
      if (h < 0)
        std::memset(row + left, 0, right);
      else
        std::memcpy(row + left, static_cast<const char*>(p.hidden) + h * p.hidden_stride * element, right);
    }
  });
}

void run(const HsrArgs& a, const Tensor& out, int64_t valid, void* scratch) {
  const HsrProjectParams p = make_params(a, out, valid, scratch);
  if (valid == 0 || p.outputs == 0) return;
  const int64_t width = p.embed_width + p.hidden_width;
  if (valid <= kSkinnyRows) {
    run_items(hsr_pack_cpu, p, pack_items(valid), /*grain=*/4);
    const int64_t work = valid * width * kSkinnyTile;  // multiply-adds of an item
    return run_items(hsr_project_cpu, p, (p.outputs + kSkinnyTile - 1) / kSkinnyTile, 1 + (1 << 19) / (work + 1));
  }
  for (int64_t begin = 0; begin < valid; begin += kHsrChunk) {
    const int64_t count = valid - begin < kHsrChunk ? valid - begin : kHsrChunk;
    concatenate(p, begin, count);
    const int64_t shape[] = {count, width}, strides[] = {width, 1};
    const Tensor x =
        torch::stable::from_blob(p.packed, {shape, 2}, {strides, 2}, a.weight.device(), a.weight.scalar_type());
    library_linear(rows_of(out, begin, count), x, a.weight, a.bias);
  }
}

}  // namespace

int64_t hsr_project_workspace_size_op(int64_t rows, int64_t embed_width, int64_t hidden_width, int64_t outputs) {
  check_that(rows >= 0 && embed_width >= 0 && hidden_width >= 0 && outputs >= 0, "hsr_project_workspace_size",
             "M, E, H and O must not be negative, got ", rows, ", ", embed_width, ", ", hidden_width, ", ", outputs);
  return hsr_project_workspace_bytes(rows, embed_width, hidden_width, outputs);
}

Tensor hsr_project_op_cpu(const Tensor& token_ids, const Tensor& row_index, const Tensor& embed, const Tensor& hidden,
                          const Tensor& weight, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& num_rows) {
  const HsrArgs a{token_ids, row_index, embed, hidden, weight, bias, num_rows};
  check_layout(a);
  const int64_t valid = check_values(a), m = token_ids.size(0);
  Tensor out = empty(weight, {m, weight.size(0)}, weight.scalar_type());
  if (valid < m) {
    Tensor rest = rows_of(out, valid, m - valid);
    torch::stable::zero_(rest);
  }
  const int64_t bytes = hsr_project_workspace_bytes(valid, embed.size(1), hidden.size(1), weight.size(0));
  const Tensor scratch = empty(weight, {bytes}, ScalarType::Byte);
  run(a, out, valid, scratch.mutable_data_ptr());
  return out;
}

void hsr_project_out_op_cpu(const Tensor& token_ids, const Tensor& row_index, const Tensor& embed, const Tensor& hidden,
                            const Tensor& weight, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& num_rows, const Tensor& out, const Tensor& workspace) {
  const HsrArgs a{token_ids, row_index, embed, hidden, weight, bias, num_rows};
  check_layout(a);
  const Arg ids_arg{kOp, "token_ids", token_ids}, weight_arg{kOp, "weight", weight};
  Arg{kOp, "out", out}
      .same_device(ids_arg)
      .same_dtype(weight_arg)
      .dim(2)
      .size(0, token_ids.size(0), "M")
      .size(1, weight.size(0), "rows of weight")
      .last_dense();
  check_that(out.size(0) <= 1 || out.stride(0) >= out.size(1), kOp, "the rows of out must not overlap, got row stride ",
             out.stride(0));
  const int64_t bytes = hsr_project_workspace_bytes(token_ids.size(0), embed.size(1), hidden.size(1), weight.size(0));
  Arg{kOp, "workspace", workspace}.same_device(ids_arg).dtype({ScalarType::Byte}).dim(1).contiguous();
  check_that(workspace.size(0) >= bytes, kOp, "workspace must have at least ", bytes,
             " bytes (hsr_project_workspace_size), got ", workspace.size(0));
  run(a, out, check_values(a), workspace.mutable_data_ptr());
}

}  // namespace sparrow

STABLE_TORCH_LIBRARY_FRAGMENT(sparrow, m) {
  m.def(
      "hsr_project(Tensor token_ids, Tensor row_index, Tensor embed, Tensor hidden, Tensor weight, Tensor? bias=None, "
      "Tensor? num_rows=None) -> Tensor");
  m.def(
      "hsr_project_out(Tensor token_ids, Tensor row_index, Tensor embed, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor? num_rows, Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def("hsr_project_workspace_size(int M, int E, int H, int O) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparrow, CPU, m) {
  m.impl("hsr_project", TORCH_BOX(&sparrow::hsr_project_op_cpu));
  m.impl("hsr_project_out", TORCH_BOX(&sparrow::hsr_project_out_op_cpu));
}
STABLE_TORCH_LIBRARY_IMPL(sparrow, CompositeExplicitAutograd, m) {
  m.impl("hsr_project_workspace_size", TORCH_BOX(&sparrow::hsr_project_workspace_size_op));
}
