// Argument checks of the bindings. Order: device, dtype, shape, stride, values. Each message names the operator,
// the argument, the rule and what arrived. Call Args::... from top to bottom; a failed check throws.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "ops/common.h"

// The operators' namespace and dispatch keys. The simulated build (tests/hostsim) registers the CUDA halves, and only
// them, for CPU tensors in a namespace of its own.
#if defined(SPARROW_HOSTSIM)
#define SPARROW_LIBRARY(m) STABLE_TORCH_LIBRARY_FRAGMENT(sparrow_hostsim, m)
#define SPARROW_CPU_IMPL(m) \
  [[maybe_unused]] static void C10_CONCATENATE(no_cpu_, C10_UID)(torch::stable::detail::StableLibrary & m)
#define SPARROW_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparrow_hostsim, CPU, m)
#define SPARROW_COMPOSITE_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparrow_hostsim, CompositeExplicitAutograd, m)
#else
#define SPARROW_LIBRARY(m) STABLE_TORCH_LIBRARY_FRAGMENT(sparrow, m)
#define SPARROW_CPU_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparrow, CPU, m)
#define SPARROW_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparrow, CUDA, m)
#define SPARROW_COMPOSITE_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparrow, CompositeExplicitAutograd, m)
#endif

namespace sparrow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    default: return "another dtype";
  }
}

inline std::string shape_of(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

// One argument of one operator, with the words for its messages.
struct Arg {
  const char* op;
  const char* name;
  const Tensor& t;

  const Arg& dtype(std::initializer_list<ScalarType> allowed) const {
    std::string names;
    for (ScalarType a : allowed) {
      if (t.scalar_type() == a) return *this;
      names += (names.empty() ? "" : " or ") + std::string(dtype_name(a));
    }
    STD_TORCH_CHECK(false, "sparrow::", op, ": ", name, " must be ", names, ", got ", dtype_name(t.scalar_type()));
    return *this;
  }
  const Arg& floating() const { return dtype({ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}); }
  const Arg& same_dtype(const Arg& other) const {
    STD_TORCH_CHECK(t.scalar_type() == other.t.scalar_type(), "sparrow::", op, ": ", name, " must have the dtype of ",
                    other.name, " (", dtype_name(other.t.scalar_type()), "), got ", dtype_name(t.scalar_type()));
    return *this;
  }
  const Arg& same_device(const Arg& other) const {
    STD_TORCH_CHECK(t.device() == other.t.device(), "sparrow::", op, ": ", name, " must be on the device of ",
                    other.name);
    return *this;
  }
  const Arg& dim(int64_t n) const {
    STD_TORCH_CHECK(t.dim() == n, "sparrow::", op, ": ", name, " must have ", n, " dimensions, got shape ",
                    shape_of(t));
    return *this;
  }
  // The size of dimension d is n; `rule` says what n is ("B", "nodes of q", ...).
  const Arg& size(int64_t d, int64_t n, const char* rule) const {
    STD_TORCH_CHECK(t.size(d) == n, "sparrow::", op, ": dimension ", d, " of ", name, " must be ", n, " (", rule,
                    "), got shape ", shape_of(t));
    return *this;
  }
  const Arg& contiguous() const {
    STD_TORCH_CHECK(t.is_contiguous(), "sparrow::", op, ": ", name, " must be contiguous, got strides that are not");
    return *this;
  }
  // The last dimension is dense: what the kernels read as vectors.
  const Arg& last_dense() const {
    STD_TORCH_CHECK(t.dim() > 0 && (t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1), "sparrow::", op, ": ",
                    name, " must be dense in its last dimension (stride 1), got stride ", t.stride(t.dim() - 1));
    return *this;
  }
  // A written tensor may not hold an element twice (expand): the strides of the first `dims` dimensions span a row.
  const Arg& rows_apart(int64_t dims, int64_t row) const {
    for (int64_t d = 0; d < dims; ++d)
      STD_TORCH_CHECK(t.size(d) <= 1 || t.stride(d) >= row, "sparrow::", op, ": ", name,
                      " must not hold an element twice, got stride ", t.stride(d), " in dimension ", d);
    return *this;
  }
  // Conservative: the ranges from the first to the last element must be apart, even where the elements interleave.
  const Arg& apart_from(const Arg& other) const {
    const auto [a0, a1] = extent();
    const auto [b0, b1] = other.extent();
    STD_TORCH_CHECK(a1 <= b0 || b1 <= a0, "sparrow::", op, ": ", name, " must not overlap ", other.name, " in memory");
    return *this;
  }
  std::pair<const char*, const char*> extent() const {
    const char* first = static_cast<const char*>(t.const_data_ptr());
    int64_t elements = t.numel() > 0 ? 1 : 0;
    for (int64_t d = 0; elements > 0 && d < t.dim(); ++d) elements += (t.size(d) - 1) * t.stride(d);
    return {first, first + elements * static_cast<int64_t>(t.element_size())};
  }
};

// A scalar rule: check_that(n <= 128, "tree_mask", "N must be <= 128, got ", n).
template <class... Words>
inline void check_that(bool ok, const char* op, Words&&... words) {
  STD_TORCH_CHECK(ok, "sparrow::", op, ": ", std::forward<Words>(words)...);
}

inline DType dtype_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float      ? DType::f32
         : t.scalar_type() == ScalarType::BFloat16 ? DType::bf16
                                                   : DType::f16;
}

// A fresh contiguous tensor on the device of `like`. Straight through the C shim: a small operator is little else than
// its allocations, and with the dispatcher's boxed new_empty tree_expand's five outputs take it 1.5 times as long.
inline Tensor empty(const Tensor& like, const int64_t* shape, int64_t dims, ScalarType dtype) {
  int64_t strides[8], step = 1;
  STD_TORCH_CHECK(dims <= 8, "sparrow: at most 8 dimensions");
  for (int64_t d = dims; d-- > 0; step *= shape[d] > 1 ? shape[d] : 1) strides[d] = step;
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, shape, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device,
      like.get_device_index(), &handle));
  return Tensor(handle);
}
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return empty(like, shape.begin(), static_cast<int64_t>(shape.size()), dtype);
}

// The caller's scratch: uint8, contiguous, at least `need` bytes from an address that is a multiple of `alignment`.
inline char* take_bytes(const char* op, const Tensor& workspace, const Arg& like, int64_t need, int64_t alignment) {
  const Arg a{op, "workspace", workspace};
  a.same_device(like).dtype({ScalarType::Byte}).dim(1).contiguous();
  check_that(workspace.size(0) >= need, op, "workspace must have at least ", need, " bytes (", op,
             "_workspace_size), got ", workspace.size(0));
  char* bytes = static_cast<char*>(workspace.mutable_data_ptr());
  check_that(reinterpret_cast<uintptr_t>(bytes) % static_cast<uintptr_t>(alignment) == 0, op,
             "workspace must be aligned to ", alignment, " bytes");
  return bytes;
}
constexpr int64_t kScratchAlignment = 16;  // of the scratch that either backend takes

// The caller's error word (ErrorBit), or null.
inline int32_t* take_error(const char* op, const std::optional<Tensor>& error, const Arg& like) {
  if (!error) return nullptr;
  Arg{op, "error", *error}.same_device(like).dtype({ScalarType::Int}).dim(1).size(0, 1, "one word");
  return error->mutable_data_ptr<int32_t>();
}

// Bad parents are an error here: nodes come after their parents, so parent[i] lies in [-1, i).
inline void check_parents(const char* op, const int32_t* parent, int64_t batch, int64_t nodes) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < nodes; ++i) {
      const int32_t up = parent[b * nodes + i];
      check_that(up >= -1 && up < i, op, "parent[", b, "][", i, "] must lie in [-1, ", i, "), got ", up);
    }
}

// Runs a CPU kernel over its items on torch's thread pool; `grain` items or fewer stay on one thread.
template <class Params>
inline void run_items(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t items,
                      int64_t grain = 1) {
  if (items <= 0) return;
  if (items <= grain) return kernel(p, 0, items);
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace sparrow
