// The random words behind the noise of a sequence's tokens at one position, see ops/sample_rows.h.
#pragma once
#include "cpu/philox.h"
#include "ops/sample_rows.h"

namespace sparrow {
namespace SPARROW_ISA {

struct Noise {
  uint32_t key[2], position[2];
  Noise(int64_t seed, int64_t at)
      : key{static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)},
        position{static_cast<uint32_t>(at), static_cast<uint32_t>(static_cast<uint64_t>(at) >> 32)} {}

  // c[w][i] = word w of group i, which is that of the tokens 4 group + w.
  SPARROW_INLINE void words(const Noise& self, vu group, vu (&c)[4]) {
    const vu none{};
    c[0] = group;
    c[1] = none + self.position[0];
    c[2] = none + self.position[1];
    c[3] = none + kSampleStream;
    philox(c, self.key[0], self.key[1]);
  }
  uint32_t word(int64_t token) const {
    uint32_t c[4] = {static_cast<uint32_t>(token / 4), position[0], position[1], kSampleStream};
    philox(c, key[0], key[1]);
    return c[token % 4];
  }
};

// The numbers 0, 1, ... of the lanes.
SPARROW_INLINE vu lane_numbers() {
  vu lane{};
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  return lane;
}

// out[i] = the word of token begin + i, i < kSampleBlock; begin is a multiple of 4.
SPARROW_INLINE void block_words(const Noise& noise, int64_t begin, uint32_t* out) {
  for (int group = 0; group < kSampleBlock / 4; group += kLanes) {
    vu c[4];
    Noise::words(noise, lane_numbers() + static_cast<uint32_t>(begin / 4 + group), c);
    for (int i = 0; i < kLanes; ++i)
      for (int w = 0; w < 4; ++w) out[4 * (group + i) + w] = c[w][i];
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
