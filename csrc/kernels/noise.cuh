// The random words behind the noise of a sequence's tokens at one position, see ops/sample_rows.h.
#pragma once
#include "kernels/portable.cuh"
#include "ops/sample_rows.h"

namespace sparrow {

// Philox4x32-10, in place: counter -> the four random words.
__device__ __forceinline__ void philox(uint32_t (&c)[4], uint32_t key0, uint32_t key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{c[0]} * 0xD2511F53u, b = uint64_t{c[2]} * 0xCD9E8D57u;
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0;
    c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1;
    c[3] = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}
struct Noise {
  uint64_t seed, position;
  // The words of tokens [4 group, 4 group + 4).
  __device__ __forceinline__ void words(uint32_t (&c)[4], uint32_t group) const {
    c[0] = group;
    c[1] = static_cast<uint32_t>(position);
    c[2] = static_cast<uint32_t>(position >> 32);
    c[3] = kSampleStream;
    philox(c, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }
};

}  // namespace sparrow
