// The draw, without a logarithm per token. Scores are relative to the row's maximum m: s_i = d_i + g_i, d_i <= 0.
//   - The first pass keeps the maximum of every block of 64 tokens. Later passes skip a block from that number alone.
//   - The score s of the maximum's own token starts the search. Another can reach it only where g_i >= s - d_i. As
//     -log u > 1 - u, g_i < -log(1 - u_i): only where 1 - u_i < e^(d_i - s), a test in float32 with a margin above its
//     rounding. The few tokens that pass it are scored in float64 and compared, so the result is the definition's.
//   - g_i < 33 log 2: a block whose largest d is further below s needs no random numbers.
//   - Cuts (the k-th largest value; the value at which the probability reaches top_p) come from one radix descent over
//     the ordered bits of the float, weighted by 1 or by the probability: no sort. The k-th largest block maximum
//     bounds the k-th largest value from below; for top-p, tokens are left out that are too improbable to matter even
//     if all V of them were like that.
#include "ops/sample_rows.h"

#include <cmath>

#include "cpu/noise.h"
#include "cpu/row_max.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

static_assert(kBlock == kSampleBlock);
constexpr float kInf = __builtin_inff();
constexpr float kMaxNoise = 22.874f;  // > 33 log 2 > any -log(-log u)
constexpr float kMargin = 1e-4f;      // above the float32 rounding of d - s where |d - s| < 32

typedef double vdd __attribute__((vector_size(kLanes * 8)));

template <class T>
struct Row {
  const T* x;
  int64_t vocab;
  const float* block_max;  // null: not known
  float block_top(int64_t begin) const { return block_max == nullptr ? kInf : block_max[begin / kBlock]; }
};

// (x - m) / temperature, in halves: the difference of two finite floats may overflow.
struct Scale {
  float half_max, twice_inverse;
  Scale(float m, float temperature) : half_max(m * .5f), twice_inverse(2.f / temperature) {}
  float operator()(float x) const { return (x * .5f - half_max) * twice_inverse; }
  vf operator()(vf x) const { return (x * splat(.5f) - splat(half_max)) * splat(twice_inverse); }
};

// What a token weighs in a descent.
struct One {
  vf operator()(vf) const { return splat(1.f); }
};
struct Probability {
  Scale scale;
  vf operator()(vf x) const { return exp(scale(x)); }
};

// Unsigned integers in the order of the floats; -0 counts as +0.
SPARROW_INLINE uint32_t ordered(float x) {
  x += 0.f;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
SPARROW_INLINE float from_ordered(uint32_t key) {
  const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The leading bits of a key that T's values can differ in.
constexpr int kDigitBits = 11;
template <class T>
struct KeyBits {
  static constexpr int value = 32;
};
template <>
struct KeyBits<bf16_t> {
  static constexpr int value = 16;
};
template <>
struct KeyBits<f16_t> {
  static constexpr int value = 19;  // sign, float32's 8 exponent bits, 10 of mantissa
};

// Adds the weights of the tokens >= floor whose keys agree with `prefix` above bit `known` to the histogram of the
// next bits, those from `shift` on.
template <class T, class Weight>
void add_histogram(const Row<T>& row, float floor, const Weight& weight, uint32_t prefix, int known, int shift,
                   double* histogram) {
  const uint32_t digits = (1u << (known - shift)) - 1;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const float top = row.block_top(begin);
    if (top < floor || ordered(top) < prefix) continue;
    vf block[kBlockVecs];
    load_block(row.x, begin, row.vocab, block);
    float x[kBlock], w[kBlock];
    for (int j = 0; j < kBlockVecs; ++j) {
      store(x + j * kLanes, block[j]);
      store(w + j * kLanes, weight(block[j]));
    }
    uint32_t digit[kBlock];
    uint32_t some = 0;
    for (int i = 0; i < kBlock; ++i) {
      const uint32_t key = ordered(x[i]);
      const bool inside = x[i] >= floor && static_cast<uint64_t>(key ^ prefix) >> known == 0;  // NaN is outside
      digit[i] = (key >> shift) & digits;
      w[i] = inside ? w[i] : 0.f;
      some |= inside;
    }
    if (!some) continue;
    for (int i = 0; i < kBlock; ++i) histogram[digit[i]] += w[i];
  }
}

struct Found {
  float value;
  double above;  // the weight of the tokens larger than value
};

// The largest value at which the weight of the tokens >= value reaches target; the smallest value where none does.
template <class T, class Weight>
Found descend(const Row<T>& row, float floor, double target, const Weight& weight) {
  double above = 0;
  uint32_t prefix = 0;
  int known = 32;
  while (known > 32 - KeyBits<T>::value) {
    const int bits = known > kDigitBits ? kDigitBits : known;
    const int shift = known - bits;
    double histogram[1 << kDigitBits] = {};
    add_histogram(row, floor, weight, prefix, known, shift, histogram);
    int found = 0;
    double found_above = above;
    for (int digit = (1 << bits) - 1; digit >= 0; --digit) {
      if (histogram[digit] == 0) continue;
      found = digit;
      found_above = above;
      above += histogram[digit];
      if (above >= target) break;
    }
    above = found_above;
    prefix |= static_cast<uint32_t>(found) << shift;
    known = shift;
  }
  if (prefix >> 31 == 0) prefix |= (uint64_t{1} << known) - 1;  // the bits T does not have: ones in a negative's key
  return {from_ordered(prefix), above};
}

// What is kept: x > value, and x == value up to the index last_tie.
struct Cut {
  float value = -kInf;
  int64_t last_tie = INT64_MAX;
};

template <class T>
float kth_largest(const Row<T>& row, int64_t k) {
  const int64_t blocks = sample_blocks(row.vocab);
  const Row<float> tops{row.block_max, blocks, nullptr};
  const float floor = k <= blocks ? descend(tops, -kInf, static_cast<double>(k), One{}).value : -kInf;
  return descend(row, floor, static_cast<double>(k), One{}).value;
}

// top-p among the tokens >= low.
template <class T>
Cut nucleus(const Row<T>& row, float low, float m, float temperature, double top_p) {
  const Probability weight{Scale(m, temperature)};
  vdd sum{};
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    if (row.block_top(begin) < low) continue;
    vf block[kBlockVecs];
    load_block(row.x, begin, row.vocab, block);
    for (int j = 0; j < kBlockVecs; ++j)
      sum += __builtin_convertvector(select(block[j] >= splat(low), weight(block[j]), vf{}), vdd);
  }
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];

  // V tokens at `negligible` or less weigh less than 1 - top_p together: each has top_p before it, and is dropped.
  const double negligible = m + temperature * std::log(.9 * (1. - top_p) * total / static_cast<double>(row.vocab));
  float floor = static_cast<float>(negligible);
  if (floor > negligible) floor = std::nextafterf(floor, -kInf);
  const double target = top_p * total;
  const Found found = descend(row, floor > low ? floor : low, target, weight);

  Cut cut{found.value, -1};
  const double each = weight(splat(found.value))[0];
  double before = found.above;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    if (row.block_top(begin) < cut.value) continue;
    const int64_t end = begin + kBlock < row.vocab ? begin + kBlock : row.vocab;
    for (int64_t i = begin; i < end; ++i) {
      if (to_f32(row.x[i]) != cut.value) continue;
      if (cut.last_tie >= 0 && before >= target) return cut;
      cut.last_tie = i;
      before += each;
    }
  }
  return cut;
}

double gumbel(uint32_t word) {
  const double u = (static_cast<double>(word) + .5) * 0x1p-32;
  return -std::log(-std::log(u));
}

struct Best {
  double score;
  int64_t index;
  void offer(double s, int64_t i) {
    if (s > score || (s == score && i < index)) {
      score = s;
      index = i;
    }
  }
};

// The argmax of d + g over what the cut keeps, which includes the first maximum, `top`.
template <class T>
int64_t draw(const Row<T>& row, const RowMax& top, float temperature, const Cut& cut, const Noise& noise) {
  const Scale scale(top.value, temperature);
  Best best{gumbel(noise.word(top.index)), top.index};
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const float block_top = row.block_top(begin);
    const float lead = static_cast<float>(best.score) - kMargin;
    if (block_top < cut.value || scale(block_top) - lead < -kMaxNoise) continue;
    alignas(64) uint32_t words[kBlock];
    block_words(noise, begin, words);
    vf block[kBlockVecs];
    load_block(row.x, begin, row.vocab, block);
    for (int j = 0; j < kBlockVecs; ++j) {
      vu word;
      std::memcpy(&word, words + j * kLanes, sizeof word);
      const vu half = ~word >> 1;  // floor(2^31 (1 - u)): rounds 1 - u down
      const vf room = __builtin_convertvector(reinterpret_cast<vi>(half), vf);
      const vf reach = exp(scale(block[j]) - splat(lead)) * splat(0x1p31f);
      const vi candidate = (room <= reach) & (block[j] >= splat(cut.value));
      if (!any(candidate)) continue;
      for (int i = 0; i < kLanes; ++i) {
        const int64_t token = begin + j * kLanes + i;
        const float x = block[j][i];
        if (candidate[i] == 0 || (x == cut.value && token > cut.last_tie)) continue;
        const double d = (static_cast<double>(x) - top.value) / temperature;
        best.offer(d + gumbel(word[i]), token);
      }
    }
  }
  return best.index;
}

template <class T>
void run(const SampleRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.nodes;
    const T* x = static_cast<const T*>(p.logits) + b * p.stride_b + i % p.nodes * p.stride_n;
    float* block_max = p.block_max + i * sample_blocks(p.vocab);
    const float temperature = p.temperature[b];
    const RowMax top = row_max(x, p.vocab, block_max);
    if (temperature == 0.f || top.value == -kInf) {
      p.out[i] = top.argmax();
      continue;
    }
    if (top.value == kInf) {
      p.out[i] = top.index;
      continue;
    }
    const Row<T> row{x, p.vocab, block_max};
    Cut cut;
    const int64_t k = p.top_k == nullptr ? 0 : p.top_k[b];
    if (k > 0 && k < p.vocab) cut.value = kth_largest(row, k);
    if (p.top_p != nullptr && p.top_p[b] < 1.f) cut = nucleus(row, cut.value, top.value, temperature, p.top_p[b]);
    p.out[i] = draw(row, top, temperature, cut, Noise(p.seed[b], p.position[i]));
  }
}

}  // namespace

void sample_rows_cpu(const SampleRowsParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32: return run<float>(p, begin, end);
    case DType::bf16: return run<bf16_t>(p, begin, end);
    case DType::f16: return run<f16_t>(p, begin, end);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
