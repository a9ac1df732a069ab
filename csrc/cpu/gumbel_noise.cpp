#include "ops/gumbel_noise.h"

#include "cpu/noise.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

// -log(-log u), u = (word + 1/2) 2^-32. Above one half by 1 - u = (~word + 1/2) 2^-32, with log u = log(w) (1 - u) /
// (1 - w), w = 1 - (1 - u) rounded (Kahan's log1p).
SPARROW_INLINE vf gumbel(vu word) {
  const vi upper = reinterpret_cast<vi>(word) < vi{};
  const vu least = upper ? ~word : word;  // the one of the two that is below 2^31
  const vf part = (__builtin_convertvector(reinterpret_cast<vi>(least), vf) + splat(.5f)) * splat(0x1p-32f);
  const vf one = splat(1.f), w = one - part, lower_log = log(select(upper, w, part));
  const vf upper_log = select(w == one, -part, lower_log * part / (one - w));
  return -log(-select(upper, upper_log, lower_log));
}

void consecutive(const Noise& noise, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; i += kSampleBlock) {
    alignas(64) uint32_t words[kSampleBlock];
    block_words(noise, i, words);
    for (int64_t j = 0; j < kSampleBlock && i + j < end; j += kLanes) {
      vu word;
      std::memcpy(&word, words + j, sizeof word);
      const vf g = gumbel(word);
      if (i + j + kLanes <= end)
        store(out + i + j, g);
      else
        store_n(out + i + j, g, static_cast<int>(end - i - j));
    }
  }
}

// Of the tokens id_map[begin .. end).
void mapped(const Noise& noise, const int64_t* id_map, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = end - i < kLanes ? static_cast<int>(end - i) : kLanes;
    uint64_t id[kLanes]{};
    std::memcpy(id, id_map + i, static_cast<size_t>(n) * sizeof *id);
    uint32_t groups[kLanes], places[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      groups[j] = static_cast<uint32_t>(id[j] >> 2);
      places[j] = static_cast<uint32_t>(id[j] & 3u);
    }
    vu group, which, c[4];
    std::memcpy(&group, groups, sizeof group);
    std::memcpy(&which, places, sizeof which);
    Noise::words(noise, group, c);
    const vu low = which & 1u ? c[1] : c[0], high = which & 1u ? c[3] : c[2];
    const vf g = gumbel(which & 2u ? high : low);
    if (n == kLanes)
      store(out + i, g);
    else
      store_n(out + i, g, n);
  }
}

}  // namespace

void gumbel_noise_cpu(const GumbelNoiseParams& p, int64_t begin, int64_t end) {
  const int64_t pieces = noise_pieces(p.vocab);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item / pieces, from = item % pieces * kNoisePiece;
    const int64_t to = from + kNoisePiece < p.vocab ? from + kNoisePiece : p.vocab;
    const Noise noise(p.seed[row / p.positions], p.position[row]);
    float* out = p.out + row * p.vocab;
    if (p.id_map == nullptr)
      consecutive(noise, from, to, out);
    else
      mapped(noise, p.id_map, from, to, out);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
