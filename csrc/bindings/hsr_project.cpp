#include "ops/hsr_project.h"

#include <cstring>

#include "bindings/checks.h"
#include "bindings/cuda.h"
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
  const std::optional<Tensor>& error;
};

void check_layout(const HsrArgs& a) {
  check_tensors(kOp, {{"token_ids", a.token_ids},
                      {"row_index", a.row_index},
                      {"embed", a.embed},
                      {"hidden", a.hidden},
                      {"weight", a.weight},
                      {"bias", a.bias},
                      {"num_rows", a.num_rows},
                      {"error", a.error, kWritten}});
  const Arg token_ids{kOp, "token_ids", a.token_ids}, row_index{kOp, "row_index", a.row_index};
  const Arg embed{kOp, "embed", a.embed}, hidden{kOp, "hidden", a.hidden}, weight{kOp, "weight", a.weight};
  token_ids.dtype({ScalarType::Long}).dim(1).contiguous();
  row_index.dtype({ScalarType::Int}).dim(1).size(0, a.token_ids.size(0), "M").contiguous();
  weight.floating().dim(2);
  embed.same_dtype(weight).dim(2).last_dense();
  hidden.same_dtype(weight).dim(2).last_dense();
  weight.size(1, a.embed.size(1) + a.hidden.size(1), "columns of embed + columns of hidden").last_dense();
  if (a.bias) {
    const Arg bias{kOp, "bias", *a.bias};
    bias.same_dtype(weight).dim(1).size(0, a.weight.size(0), "rows of weight").contiguous();
  }
  if (a.num_rows) {
    const Arg num_rows{kOp, "num_rows", *a.num_rows};
    num_rows.dtype({ScalarType::Int}).dim(1).size(0, 1, "one count").contiguous();
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
  HsrProjectParams p{};
  p.token_ids = a.token_ids.const_data_ptr<int64_t>();
  p.row_index = a.row_index.const_data_ptr<int32_t>();
  p.embed = a.embed.const_data_ptr();
  p.hidden = a.hidden.const_data_ptr();
  p.weight = a.weight.const_data_ptr();
  p.bias = a.bias ? a.bias->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.packed = align_packed(scratch);
  p.rows = valid;
  p.embed_width = a.embed.size(1);
  p.hidden_width = a.hidden.size(1);
  p.outputs = a.weight.size(0);
  p.embed_stride = a.embed.stride(0);
  p.hidden_stride = a.hidden.stride(0);
  p.weight_stride = a.weight.stride(0);
  p.out_stride = out.stride(0);
  p.dtype = dtype_of(a.weight);
  p.vocab = a.embed.size(0);
  p.hidden_rows = a.hidden.size(0);
  p.num_rows = a.num_rows ? a.num_rows->const_data_ptr<int32_t>() : nullptr;
  p.partial = static_cast<float*>(p.packed);
  p.error = take_error(kOp, a.error);
  return p;
}

// A contiguous 2-D view of scratch memory.
Tensor matrix(const Tensor& like, void* data, int64_t rows, int64_t columns) {
  const int64_t shape[] = {rows, columns}, strides[] = {columns, 1};
  return torch::stable::from_blob(data, {shape, 2}, {strides, 2}, like.device(), like.scalar_type());
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

// Rows [begin, begin + count) of what p describes; count <= kSkinnyRows.
void project_rows(HsrProjectParams p, int64_t begin, int64_t count) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  p.token_ids += begin;
  p.row_index += begin;
  p.rows = count;
  p.out = static_cast<char*>(p.out) + begin * p.out_stride * element;
  run_items(hsr_pack_cpu, p, pack_items(count), /*grain=*/4);
  SkinnyLinearParams product{};
  product.part[0] = {p.weight, p.bias, p.out, p.outputs, p.weight_stride, p.out_stride};
  product.packed = p.packed;
  product.rows = count;
  product.width = p.embed_width + p.hidden_width;
  product.dtype = p.dtype;
  multiply_packed(product);
}

void run(const HsrArgs& a, const Tensor& out, int64_t valid, void* scratch) {
  const HsrProjectParams p = make_params(a, out, valid, scratch);
  if (valid == 0 || p.outputs == 0) return;
  const bool library = use_library(valid, p.dtype);
  const int64_t width = p.embed_width + p.hidden_width, most = library ? kHsrChunk : skinny_block(valid);
  for (int64_t begin = 0; begin < valid; begin += most) {
    const int64_t count = valid - begin < most ? valid - begin : most;
    if (!library) {
      project_rows(p, begin, count);
      continue;
    }
    concatenate(p, begin, count);
    library_linear(rows_of(out, begin, count), matrix(a.weight, p.packed, count, width), a.weight, a.bias);
  }
}

}  // namespace

Tensor hsr_project_op_cpu(const Tensor& token_ids, const Tensor& row_index, const Tensor& embed, const Tensor& hidden,
                          const Tensor& weight, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& num_rows, const std::optional<Tensor>& error) {
  const HsrArgs a{token_ids, row_index, embed, hidden, weight, bias, num_rows, error};
  check_layout(a);
  const int64_t valid = check_values(a), m = token_ids.size(0);
  Tensor out = empty(kOp, weight, {m, weight.size(0)}, weight.scalar_type());
  if (valid < m) {
    Tensor rest = rows_of(out, valid, m - valid);
    torch::stable::zero_(rest);
  }
  const int64_t bytes = hsr_project_workspace_bytes(valid, embed.size(1), hidden.size(1), weight.size(0));
  const Tensor scratch = empty(kOp, weight, {bytes}, ScalarType::Byte);
  run(a, out, valid, scratch.mutable_data_ptr());
  return out;
}

#if defined(SPARROW_CUDA)
namespace {

// The kernels take up to kSkinnyRows rows, in float32 any number; more go through the library, a chunk at a time. The
// count of valid rows stays on the device, so all M rows are multiplied then and the valid ones kept.
void run_cuda(const HsrArgs& a, const Tensor& out, void* scratch) {
  HsrProjectParams p = make_params(a, out, a.token_ids.size(0), scratch);
  if (p.dtype == DType::f32) check_grid(kOp, "M in float32", p.rows, 65535 * kPlainRows);
  check_grid(kOp, "E + H", a.weight.size(1), 65535 * kSkinnySplit);
  const OnDevice on(kOp, a.weight);
  if (p.dtype == DType::f32 || p.rows <= kSkinnyRows) return check_launch(kOp, hsr_project_cuda(p, on.stream));
  if (p.outputs == 0) return;
  const int64_t width = p.embed_width + p.hidden_width;
  void* products = static_cast<char*>(p.packed) + hsr_gathered_bytes(p.rows, width);
  for (int64_t begin = 0; begin < p.rows; begin += kHsrChunk) {
    const int64_t count = p.rows - begin < kHsrChunk ? p.rows - begin : kHsrChunk;
    check_launch(kOp, hsr_gather_cuda(p, begin, count, p.packed, on.stream));
    library_linear(matrix(a.weight, products, count, p.outputs), matrix(a.weight, p.packed, count, width), a.weight,
                   a.bias);
    check_launch(kOp, hsr_scatter_cuda(p, begin, count, products, on.stream));
  }
}

}  // namespace

Tensor hsr_project_op_cuda(const Tensor& token_ids, const Tensor& row_index, const Tensor& embed, const Tensor& hidden,
                           const Tensor& weight, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& num_rows, const std::optional<Tensor>& error) {
  const HsrArgs a{token_ids, row_index, embed, hidden, weight, bias, num_rows, error};
  check_layout(a);
  const int64_t m = token_ids.size(0);
  const Tensor out = empty(kOp, weight, {m, weight.size(0)}, weight.scalar_type());
  const int64_t bytes = hsr_project_workspace_bytes(m, embed.size(1), hidden.size(1), weight.size(0));
  const Tensor scratch = empty(kOp, weight, {bytes}, ScalarType::Byte);
  run_cuda(a, out, scratch.mutable_data_ptr());
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "hsr_project(Tensor token_ids, Tensor row_index, Tensor embed, Tensor hidden, Tensor weight, Tensor? bias=None, "
      "Tensor? num_rows=None, Tensor(a!)? error=None) -> Tensor");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("hsr_project", &sparrow::hsr_project_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("hsr_project", &sparrow::hsr_project_op_cuda)); }
#endif
