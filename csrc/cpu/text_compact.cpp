// Works on blocks of 64 rows as one bit mask: prompts are long runs of text and of visual rows, so most masks are all
// ones or all zeros.
#include "ops/text_compact.h"

#include "cpu/vec.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int kBlock = 64;

// Bit i is set where byte i of the 64 at p is nonzero.
SPARROW_INLINE uint64_t nonzero_bytes(const uint8_t* p) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(v, v);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const uint64_t a = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, zero)));
  const uint64_t b = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, zero)));
  return ~(a | b << 32);
#else
  uint64_t bits = 0;
  for (int i = 0; i < kBlock; ++i) bits |= uint64_t{p[i] != 0} << i;
  return bits;
#endif
}

SPARROW_INLINE uint64_t tail_bytes(const uint8_t* p, int64_t rows) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < rows; ++i) bits |= uint64_t{p[i] != 0} << i;
  return bits;
}

// Appends the positions of a block's text rows while there is room.
SPARROW_INLINE void append(int32_t* index, int64_t room, int64_t first, uint64_t bits) {
  if (bits == ~uint64_t{0} && room >= kBlock) {
    for (int i = 0; i < kBlock; ++i) index[i] = static_cast<int32_t>(first + i);
    return;
  }
  for (int64_t n = 0; bits != 0 && n < room; ++n, bits &= bits - 1) {
    index[n] = static_cast<int32_t>(first + __builtin_ctzll(bits));
  }
}

}  // namespace

void text_compact_cpu(const TextCompactParams& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* is_text = p.is_text + b * p.batch_stride;
    const int64_t rows = p.seq_lens[b];
    int32_t* index = p.index + b * p.max_text;
    int64_t count = 0;
    for (int64_t s = 0; s < rows; s += kBlock) {
      const uint64_t bits = rows - s >= kBlock ? nonzero_bytes(is_text + s) : tail_bytes(is_text + s, rows - s);
      if (bits == 0) continue;
      if (count < p.max_text) append(index + count, p.max_text - count, s, bits);
      count += __builtin_popcountll(bits);
    }
    for (int64_t n = count; n < p.max_text; ++n) index[n] = -1;
    p.count[b] = static_cast<int32_t>(count);
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
