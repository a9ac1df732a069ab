// Argument checks of the bindings. Order: device and memory (check_tensors), dtype, shape, stride, values. Each message
// names the operator, the argument, the rule and what arrived; a failed check throws.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/overlap.h"
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

// What an operator says to its caller, whole: the text of STD_TORCH_CHECK would begin with this source's path.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};
template <class... Words>
[[noreturn]] void refuse(const char* op, const Words&... words) {
  std::ostringstream text;
  text << "sparrow::" << op << ": ";
  (text << ... << words);
  throw Refused(text.str());
}

// A rule: check_that(n <= 128, "tree_mask", "N must be <= 128, got ", n).
template <class... Words>
inline void check_that(bool ok, const char* op, const Words&... words) {
  if (!ok) [[unlikely]]
    refuse(op, words...);
}

// A length, window, size or count that came as a number: before any arithmetic with it.
inline void check_count(const char* op, const char* name, int64_t value, int64_t least = 0, int64_t most = INT32_MAX) {
  check_that(value >= least && value <= most, op, name, " must lie in [", least, ", ", most, "], got ", value);
}

inline const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Short: return "int16";
    case ScalarType::Char: return "int8";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "another dtype";
  }
}

template <class Numbers>
std::string list_of(const Numbers& numbers) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "") << numbers[i];
  text << "]";
  return text.str();
}
inline std::string shape_of(const Tensor& t) { return list_of(t.sizes()); }
inline std::string strides_of(const Tensor& t) { return list_of(t.strides()); }

inline std::string device_name(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  std::ostringstream text;
  if (t.is_cuda())
    text << "cuda:" << t.get_device_index();
  else
    text << "a device of type " << static_cast<int>(t.device().type());
  return text.str();
}

// One argument of one operator, with the words for its messages.
struct Arg {
  const char* op;
  const char* name;
  const Tensor& t;

  const Arg& dtype(std::initializer_list<ScalarType> allowed) const {
    for (ScalarType a : allowed)
      if (t.scalar_type() == a) return *this;
    std::string names;
    for (ScalarType a : allowed) names.append(names.empty() ? "" : " or ").append(dtype_name(a));
    refuse(op, name, " must be ", names, ", got ", dtype_name(t.scalar_type()));
  }
  const Arg& floating() const { return dtype({ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}); }
  const Arg& same_dtype(const Arg& other) const {
    check_that(t.scalar_type() == other.t.scalar_type(), op, name, " must have the dtype of ", other.name, " (",
               dtype_name(other.t.scalar_type()), "), got ", dtype_name(t.scalar_type()));
    return *this;
  }
  const Arg& dim(int64_t n) const {
    if (t.dim() != n) refuse(op, name, " must have ", n, " dimensions, got shape ", shape_of(t));
    return *this;
  }
  // The size of dimension d is n; `rule` says what n is ("B", "nodes of q", ...).
  const Arg& size(int64_t d, int64_t n, const char* rule) const {
    if (t.size(d) != n)
      refuse(op, "dimension ", d, " of ", name, " must be ", n, " (", rule, "), got shape ", shape_of(t));
    return *this;
  }
  const Arg& contiguous() const {
    if (!t.is_contiguous()) refuse(op, name, " must be contiguous, got strides ", strides_of(t));
    return *this;
  }
  // The last dimension is dense: what the kernels read as vectors.
  const Arg& last_dense() const {
    const int64_t last = t.dim() - 1;
    if (last < 0) refuse(op, name, " must have dimensions, got a scalar");
    if (t.size(last) > 1 && t.stride(last) != 1)
      refuse(op, name, " must be dense in its last dimension (stride 1), got stride ", t.stride(last));
    return *this;
  }
};

// A tensor argument as check_tensors takes it: also an optional one that is not given.
constexpr bool kWritten = true;
struct Use {
  const char* name;
  const Tensor* tensor;
  bool written;
  int64_t index = -1;  // in the list `name`

  Use(const char* name, const Tensor& t, bool written = false) : name(name), tensor(&t), written(written) {}
  Use(const char* name, const std::optional<Tensor>& t, bool written = false)
      : name(name), tensor(t ? &*t : nullptr), written(written) {}
  std::string words() const {
    std::ostringstream text;
    text << name;
    if (index >= 0) text << "[" << index << "]";
    return text.str();
  }
};

namespace detail {

struct Placed {
  const Use* use;
  Block block;
};

// Where t lies; nothing for an empty tensor. Its storage must hold it: one that was freed or shrunk does not.
inline Block place(const char* op, const Use& use) {
  const Tensor& t = *use.tensor;
  Block block;
  if (t.numel() == 0) return block;
  const auto sizes = t.sizes(), strides = t.strides();
  const int64_t item = static_cast<int64_t>(t.element_size());
  block.run = item;
  for (size_t d = sizes.size(); d-- > 0;) block.add(sizes[d], strides[d] * item);
  int64_t room = 0, offset = 0;
  aoti_torch_get_storage_size(t.get(), &room);
  aoti_torch_get_storage_offset(t.get(), &offset);
  if (offset * item + block.span() > room)
    refuse(op, use.words(), " must lie in its storage, got ", room, " bytes of storage for shape ", shape_of(t));
  block.base = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return block;
}

// Same device, sizes that 32 bits hold (memory given as a 1-D tensor apart), and nothing written shares memory.
inline void check_placed(const char* op, Placed* begin, Placed* end) {
  const Tensor& first = *begin->use->tensor;
  bool writes = false;
  for (Placed* p = begin; p != end; ++p) {
    const Tensor& t = *p->use->tensor;
    if (t.device() != first.device())
      refuse(op, p->use->words(), " must be on the device of ", begin->use->words(), " (", device_name(first),
             "), got ", device_name(t));
    for (const int64_t n : t.sizes())
      if (n > INT32_MAX && !(p->use->written && t.dim() == 1))
        refuse(op, "every dimension of ", p->use->words(), " must be below 2^31, got shape ", shape_of(t));
    p->block = place(op, *p->use);
    if (p->use->written && meets_itself(p->block))
      refuse(op, p->use->words(), " is written: it must not hold an element twice, got shape ", shape_of(t),
             " with strides ", strides_of(t));
    writes |= p->use->written;
  }
  if (!writes) return;
  std::sort(begin, end, [](const Placed& a, const Placed& b) { return a.block.base < b.block.base; });
  for (Placed* a = begin; a != end; ++a) {
    const uintptr_t stop = a->block.base + static_cast<uintptr_t>(a->block.span());
    for (Placed* b = a + 1; b != end && b->block.base < stop; ++b) {
      if (!(a->use->written || b->use->written) || !meet(a->block, b->block)) continue;
      const Use &written = a->use->written ? *a->use : *b->use, &other = a->use->written ? *b->use : *a->use;
      refuse(op, written.words(), " is written: it must not overlap ", other.words(), " in memory");
    }
  }
}

}  // namespace detail

// All tensors of a call, the one that says the device first.
inline void check_tensors(const char* op, std::initializer_list<Use> uses) {
  detail::Placed placed[16];
  detail::Placed* end = placed;
  for (const Use& use : uses)
    if (use.tensor) (end++)->use = &use;
  detail::check_placed(op, placed, end);
}
inline void check_tensors(const char* op, const std::vector<Use>& uses) {
  std::vector<detail::Placed> placed;
  for (const Use& use : uses)
    if (use.tensor) placed.push_back({&use, {}});
  detail::check_placed(op, placed.data(), placed.data() + placed.size());
}

inline DType dtype_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float      ? DType::f32
         : t.scalar_type() == ScalarType::BFloat16 ? DType::bf16
                                                   : DType::f16;
}

// The bytes an operator needs, as its <op>_workspace_size gives them.
inline int64_t check_bytes(const char* op, int64_t bytes) {
  check_that(bytes < kTooMany, op, "the arguments must give less than 2^60 bytes of memory, got more");
  return bytes;
}

// A fresh contiguous tensor on the device of `like`. Straight through the C shim: a small operator is little else than
// its allocations, and with the dispatcher's boxed new_empty tree_expand's five outputs take it 1.5 times as long.
inline Tensor empty(const char* op, const Tensor& like, const int64_t* shape, int64_t dims, ScalarType dtype) {
  int64_t strides[8], step = 1, elements = 1;
  for (int64_t d = dims; d-- > 0;) {
    strides[d] = step;
    step = product(step, shape[d] > 1 ? shape[d] : 1);
    elements = product(elements, shape[d]);
  }
  const int64_t bytes = product(elements, dtype == ScalarType::Long ? 8 : dtype == ScalarType::Byte ? 1 : 4);
  int32_t device = 0;
  AtenTensorHandle handle = nullptr;
  aoti_torch_get_device_type(like.get(), &device);
  if (bytes >= kTooMany ||
      aoti_torch_empty_strided(dims, shape, strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device,
                               like.get_device_index(), &handle) != AOTI_TORCH_SUCCESS)
    refuse(op, "an output or scratch of ", bytes, " bytes cannot be allocated on ", device_name(like));
  return Tensor(handle);
}
inline Tensor empty(const char* op, const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return empty(op, like, shape.begin(), static_cast<int64_t>(shape.size()), dtype);
}

// The caller's scratch: uint8, contiguous, at least `need` bytes from an address that is a multiple of `alignment`.
inline char* take_bytes(const char* op, const Tensor& workspace, int64_t need, int64_t alignment) {
  Arg{op, "workspace", workspace}.dtype({ScalarType::Byte}).dim(1).contiguous();
  check_that(workspace.size(0) >= need, op, "workspace must have at least ", need, " bytes (", op,
             "_workspace_size), got ", workspace.size(0));
  char* bytes = static_cast<char*>(workspace.mutable_data_ptr());
  check_that(reinterpret_cast<uintptr_t>(bytes) % static_cast<uintptr_t>(alignment) == 0, op,
             "workspace must be aligned to ", alignment, " bytes");
  return bytes;
}

// The caller's error word (ErrorBit), or null.
inline int32_t* take_error(const char* op, const std::optional<Tensor>& error) {
  if (!error) return nullptr;
  Arg{op, "error", *error}.dtype({ScalarType::Int}).dim(1).size(0, 1, "one word");
  return error->mutable_data_ptr<int32_t>();
}

// Bad parents are an error here: nodes come after their parents, so parent[i] lies in [-1, i).
inline void check_parents(const char* op, const char* name, const int32_t* parent, int64_t batch, int64_t nodes) {
  if (nodes == 0) return;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < nodes; ++i) {
      const int32_t up = parent[b * nodes + i];
      check_that(up >= -1 && up < i, op, name, "[", b, "][", i, "] must lie in [-1, ", i, "), got ", up);
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

// What the registered function does: `run`, and whatever else than a refusal comes out of it (a call into torch that
// found no memory, std::bad_alloc) in words of the operator's.
using BoxedFunction = void (*)(StableIValue*, uint64_t, uint64_t);
inline void call_boxed(const char* op, BoxedFunction run, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  try {
    run(stack, inputs, outputs);
  } catch (const Refused&) {
    throw;
  } catch (const std::exception& error) {
    const std::string what = error.what(), call = what.substr(0, what.find_first_of("( \n"));
    refuse(op, "a call that it makes failed, most likely for want of memory: ", call);
  }
}

}  // namespace sparrow

// m.impl(SPARROW_BOX("tree_mask", &sparrow::tree_mask_op_cpu));
#define SPARROW_BOX(op, function)                                         \
  op, [](StableIValue* stack, uint64_t inputs, uint64_t outputs) {        \
    sparrow::call_boxed(op, TORCH_BOX(function), stack, inputs, outputs); \
  }
