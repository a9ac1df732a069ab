// sample_rows against its definition, every score written out, with a Philox of its own that is checked against the
// known answers published with Random123.
#include "ops/sample_rows.h"

#include <cmath>
#include <vector>

#include "tests/check.h"

using sparrow::tests::expect;

namespace {

struct Words {
  uint32_t w[4];
};

Words philox(Words c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.w[0], p1 = uint64_t{0xCD9E8D57u} * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ key0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

double gumbel(uint64_t seed, uint64_t position, int64_t token) {
  const Words counter{{static_cast<uint32_t>(token / 4), static_cast<uint32_t>(position),
                       static_cast<uint32_t>(position >> 32), sparrow::kSampleStream}};
  const uint32_t word = philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)).w[token % 4];
  return -std::log(-std::log((word + .5) / 4294967296.));
}

int64_t definition(const std::vector<float>& x, float temperature, uint64_t seed, uint64_t position) {
  double top = x[0], best = -HUGE_VAL;
  for (const float v : x) top = v > top ? v : top;
  int64_t index = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double score = (x[i] - top) / temperature + gumbel(seed, position, static_cast<int64_t>(i));
    if (score > best) {
      best = score;
      index = static_cast<int64_t>(i);
    }
  }
  return index;
}

int64_t draw(const std::vector<float>& x, float temperature, uint64_t seed, uint64_t position, int32_t k, float top_p) {
  const int64_t vocab = static_cast<int64_t>(x.size());
  std::vector<float> block_max(static_cast<size_t>(sparrow::sample_blocks(vocab)));
  const int64_t s = static_cast<int64_t>(seed), at = static_cast<int64_t>(position);
  int64_t out = -1;
  sparrow::SampleRowsParams p{};
  p.logits = x.data();
  p.temperature = &temperature;
  p.seed = &s;
  p.position = &at;
  p.top_k = &k;
  p.top_p = &top_p;
  p.block_max = block_max.data();
  p.out = &out;
  p.dtype = sparrow::DType::f32;
  p.batch = 1;
  p.nodes = 1;
  p.vocab = vocab;
  p.stride_b = vocab;
  p.stride_n = vocab;
  sparrow::sample_rows_cpu(p, 0, 1);
  return out;
}

std::vector<float> row(int64_t vocab, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(vocab));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(3 * gumbel(seed, 1u << 31, static_cast<int64_t>(i)));
  return x;
}

}  // namespace

TEST(philox_known_answers) {
  const auto equal = [](Words a, Words b) {
    return a.w[0] == b.w[0] && a.w[1] == b.w[1] && a.w[2] == b.w[2] && a.w[3] == b.w[3];
  };
  const uint32_t ones = 0xffffffffu;
  expect(equal(philox({{0, 0, 0, 0}}, 0, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}), "zeros");
  expect(equal(philox({{ones, ones, ones, ones}}, ones, ones), {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}),
         "ones");
  expect(equal(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
               {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}),
         "digits of pi");
}

TEST(sample_rows_equals_its_definition) {
  for (const int64_t vocab : {1, 3, 63, 64, 65, 1000}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const std::vector<float> x = row(vocab, seed);
      const uint64_t big = seed << 40;
      for (const float temperature : {.3f, 1.f, 20.f})
        expect(draw(x, temperature, big, seed, 0, 1.f) == definition(x, temperature, big, seed), "unfiltered");
    }
  }
}

TEST(sample_rows_filters_to_the_largest) {
  for (const int64_t vocab : {1, 3, 63, 64, 65, 1000}) {
    const std::vector<float> x = row(vocab, 5);
    int64_t top = 0;
    for (int64_t i = 0; i < vocab; ++i) top = x[static_cast<size_t>(i)] > x[static_cast<size_t>(top)] ? i : top;
    expect(draw(x, 5.f, 1, 2, 1, 1.f) == top, "top-k of one");
    expect(draw(x, 5.f, 1, 2, 0, 0.f) == top, "top-p of nothing");
    expect(draw(x, 0.f, 1, 2, 0, 1.f) == top, "temperature 0");
  }
}
