// What every operator shares: element types, limits, and the choice of CPU instruction set. No torch, no Python.
#pragma once
#include <cstdint>

namespace sparrow {

// A draft tree holds at most 128 nodes: two 64-bit ancestor words per node.
constexpr int kMaxNodes = 128;
constexpr int kWordBits = 64;
constexpr int words_for(int64_t nodes) { return static_cast<int>((nodes + kWordBits - 1) / kWordBits); }

// Counts of elements and bytes, never negative. A product that would be larger saturates: kTooMany is more than any
// memory, and so few that sums of several do not overflow.
constexpr int64_t kTooMany = int64_t{1} << 60;
constexpr int64_t product(int64_t a, int64_t b) { return a > 0 && b > kTooMany / a ? kTooMany : a * b; }
template <class... Counts>
constexpr int64_t product(int64_t a, int64_t b, Counts... rest) {
  return product(product(a, b), static_cast<int64_t>(rest)...);
}

// What a CUDA kernel found in its inputs and skipped: bits it sets in the caller's error word, an int32 on the device.
// (The CPU operators raise before they run and never touch the word.)
enum ErrorBit : int32_t { kBadParent = 1, kBadCount = 2, kBadIndex = 4 };

enum class DType : int32_t { f32, bf16, f16 };

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

// The CPU sources are compiled once per instruction set, each time into a namespace of that name. The widest one the
// machine has is used, avx512_bf16 (with the instruction that multiplies bfloat16) only where that is the faster one;
// set_cpu_isa chooses another (tests, comparisons).
enum class Isa : int32_t { generic = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };
Isa cpu_isa();
const char* isa_name(Isa isa);
// Returns false, changing nothing, where the name is unknown or the machine lacks the instructions.
bool set_cpu_isa(const char* name);

}  // namespace sparrow

// Declares `void name(const Params&, int64_t begin, int64_t end)` for each instruction set, and the
// dispatcher of the same name. [begin, end) is a range of independent work items; what an item is, is
// said in the operator's header beside `name##_items`.
#if defined(SPARROW_X86)
#define SPARROW_CPU_KERNEL(name, Params)                                  \
  namespace generic {                                                     \
  void name(const Params& p, int64_t begin, int64_t end);                 \
  }                                                                       \
  namespace avx2 {                                                        \
  void name(const Params& p, int64_t begin, int64_t end);                 \
  }                                                                       \
  namespace avx512 {                                                      \
  void name(const Params& p, int64_t begin, int64_t end);                 \
  }                                                                       \
  namespace avx512_bf16 {                                                 \
  void name(const Params& p, int64_t begin, int64_t end);                 \
  }                                                                       \
  inline void name(const Params& p, int64_t begin, int64_t end) {         \
    const Isa isa = cpu_isa();                                            \
    if (isa == Isa::avx512_bf16) return avx512_bf16::name(p, begin, end); \
    if (isa == Isa::avx512) return avx512::name(p, begin, end);           \
    if (isa == Isa::avx2) return avx2::name(p, begin, end);               \
    generic::name(p, begin, end);                                         \
  }
#else
#define SPARROW_CPU_KERNEL(name, Params)                  \
  namespace generic {                                     \
  void name(const Params& p, int64_t begin, int64_t end); \
  }                                                       \
  inline void name(const Params& p, int64_t begin, int64_t end) { generic::name(p, begin, end); }
#endif
