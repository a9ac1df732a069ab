// The order in which a product is summed, to the bit, for any number of rows: what skinny_gemm.h promises.
#include "ops/skinny_linear.h"

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "tests/check.h"

using namespace sparrow;

namespace {

float widened(float x) { return x; }
float widened(bf16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class T>
T narrowed(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};  // to nearest even
  }
}

// Numbers in [-1, 1), no two alike.
class Numbers {
 public:
  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state_)) * 0x1p-31f;
  }
  template <class T>
  std::vector<T> many(int64_t n) {
    std::vector<T> all(n);
    for (T& x : all) x = narrowed<T>(next());
    return all;
  }

 private:
  uint32_t state_ = 1;
};

// Whether pairs of products are added by one instruction, which rounds otherwise than two.
template <class T>
bool native() {
  return std::is_same_v<T, bf16_t> && cpu_isa() == Isa::avx512_bf16;
}

// Element i goes to partial sum (i % chunk) * 4 / chunk.
template <class T>
float summed(const T* w, const T* x, int64_t width, int chunk) {
  float part[4] = {};
  for (int64_t i = 0; i < width; ++i) {
    float& sum = part[i % chunk * 4 / chunk];
    const float a = widened(w[i]), b = widened(x[i]);
    sum = cpu_isa() == Isa::generic ? a * b + sum : std::fma(a, b, sum);
  }
  return (part[0] + part[2]) + (part[1] + part[3]);
}

// All of `rows` x `outputs`; x, w and out in vectors of their exact sizes, so that a sanitizer sees any step beyond.
template <class T>
bool exact(int64_t rows, int64_t width, int64_t outputs, int chunk) {
  Numbers numbers;
  const std::vector<T> w = numbers.many<T>(outputs * width), x = numbers.many<T>(rows * width);
  std::vector<T> out(rows * outputs);
  std::vector<char> scratch(packed_bytes(rows, width));
  SkinnyLinearParams p{};
  p.x = x.data();
  p.packed = align_packed(scratch.data());
  p.rows = rows;
  p.width = p.x_stride = width;
  p.dtype = std::is_same_v<T, float> ? DType::f32 : DType::bf16;
  p.part[0] = {w.data(), nullptr, out.data(), outputs, width, outputs};
  skinny_pack_cpu(p, 0, pack_items(rows));
  skinny_linear_cpu(p, 0, output_tiles(p, kSkinnyTile));
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t o = 0; o < outputs; ++o) {
      const float want = widened(narrowed<T>(summed(w.data() + o * width, x.data() + m * width, width, chunk)));
      const float got = widened(out[m * outputs + o]), bound = native<T>() ? std::abs(want) * 0x1p-6f + 0x1p-12f : 0.f;
      if (!(std::abs(got - want) <= bound)) return false;
    }
  return true;
}

template <class T>
void every_number_of_rows(int chunk) {
  for (const int64_t width : {1, 3, 8, 31, 130, 1031})
    for (const int64_t outputs : {1, 5, 47, 50})
      for (int64_t rows = 1; rows <= kSkinnyRows; rows += rows < 14 ? 1 : 5)
        tests::expect(exact<T>(rows, width, outputs, chunk), "order of the sums");
}

}  // namespace

TEST(skinny_linear_float32) { every_number_of_rows<float>(4); }

TEST(skinny_linear_bfloat16) { every_number_of_rows<bf16_t>(cpu_isa() == Isa::generic ? 4 : 8); }
