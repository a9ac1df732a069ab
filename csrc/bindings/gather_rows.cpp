#include "ops/gather_rows.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "gather_rows";
constexpr int64_t kBytesPerThread = 256 << 10;

// Elements of one row: the dimensions behind the first two, which must be dense.
int64_t row_elements(const Arg& a) {
  int64_t row = 1;
  for (int64_t d = 2; d < a.t.dim(); ++d) row = product(row, a.t.size(d));
  int64_t step = 1;
  for (int64_t d = a.t.dim() - 1; d >= 2 && row > 0; --d) {
    check_that(a.t.size(d) == 1 || a.t.stride(d) == step, kOp, a.name,
               " must be dense behind its first two dimensions, got stride ", a.t.stride(d), " in dimension ", d);
    step *= a.t.size(d);
  }
  return row;
}

void tensor_params(const Tensor& src, const Tensor& index, const Tensor& dst, GatherRowsParams& p) {
  const Arg from{kOp, "src", src}, to{kOp, "dst", dst};
  if (src.dim() < 2) refuse(kOp, "src must have at least 2 dimensions, got shape ", shape_of(src));
  to.dim(src.dim());
  p.batch = src.size(0);
  p.max_count = index.size(1);
  to.size(0, p.batch, "B of src");
  for (int64_t d = 2; d < src.dim(); ++d) to.size(d, src.size(d), "as in src");
  const int64_t row = row_elements(from), bytes = src.element_size();
  row_elements(to);
  p.src = static_cast<const char*>(src.const_data_ptr());
  p.dst = static_cast<char*>(dst.mutable_data_ptr());
  p.src_batch = src.stride(0) * bytes;
  p.src_row = src.stride(1) * bytes;
  p.dst_batch = dst.stride(0) * bytes;
  p.dst_row = dst.stride(1) * bytes;
  p.row_bytes = product(row, bytes);
  p.rows = src.size(1);
  p.capacity = dst.size(1);
}

// Everything is checked before the first row is written.
void check_values(const GatherRowsParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t n = p.count[b], start = p.dst_start[b];
    check_that(n >= 0 && n <= p.max_count, kOp, "count[", b, "] must lie in [0, ", p.max_count, "], got ", n);
    check_that(start >= 0 && start + n <= p.capacity, kOp, "dst_start[", b, "] must lie in [0, cap - count] = [0, ",
               p.capacity - n, "], got ", start);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t at = p.index[b * p.max_count + i];
      check_that(at >= 0 && at < p.rows, kOp, "index[", b, "][", i, "] must lie in [0, ", p.rows, "), got ", at);
    }
  }
}

GatherRowsParams checked(const Tensor& src, const Tensor& index, const Tensor& count, const Tensor& dst,
                         const Tensor& dst_start, const std::optional<Tensor>& error) {
  check_tensors(kOp, {{"src", src},
                      {"index", index},
                      {"count", count},
                      {"dst", dst, kWritten},
                      {"dst_start", dst_start},
                      {"error", error, kWritten}});
  const Arg i{kOp, "index", index}, n{kOp, "count", count}, s{kOp, "dst_start", dst_start};
  for (const Arg* other : {&i, &n, &s}) other->dtype({ScalarType::Int});
  Arg{kOp, "dst", dst}.same_dtype({kOp, "src", src});
  i.dim(2);
  n.dim(1);
  s.dim(1);
  GatherRowsParams p{};
  p.error = take_error(kOp, error);
  tensor_params(src, index, dst, p);
  for (const Arg* other : {&i, &n, &s}) other->size(0, p.batch, "B of src").contiguous();
  p.index = index.const_data_ptr<int32_t>();
  p.count = count.const_data_ptr<int32_t>();
  p.dst_start = dst_start.const_data_ptr<int32_t>();
  return p;
}

}  // namespace

void gather_rows_op_cpu(const Tensor& src, const Tensor& index, const Tensor& count, Tensor dst,
                        const Tensor& dst_start, const std::optional<Tensor>& error) {
  const GatherRowsParams p = checked(src, index, count, dst, dst_start, error);
  check_values(p);
  if (p.row_bytes > 0) run_items(gather_rows_cpu, p, p.batch * p.max_count, 1 + kBytesPerThread / p.row_bytes);
}

#if defined(SPARROW_CUDA)
void gather_rows_op_cuda(const Tensor& src, const Tensor& index, const Tensor& count, Tensor dst,
                         const Tensor& dst_start, const std::optional<Tensor>& error) {
  const GatherRowsParams p = checked(src, index, count, dst, dst_start, error);
  const OnDevice on(kOp, src);
  check_launch(kOp, gather_rows_cuda(p, on.stream));
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) {
  m.def(
      "gather_rows(Tensor src, Tensor index, Tensor count, Tensor(a!) dst, Tensor dst_start, Tensor(b!)? error=None) "
      "-> ()");
}
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("gather_rows", &sparrow::gather_rows_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("gather_rows", &sparrow::gather_rows_op_cuda)); }
#endif
