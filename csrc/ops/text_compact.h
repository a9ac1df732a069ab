// text_compact: the positions of a sequence's text rows, in order.
//   index[b] = the s < seq_lens[b] with is_text[b,s], ascending, padded with -1; count[b] = how many there are
#pragma once
#include "ops/common.h"

namespace sparrow {

struct TextCompactParams {
  const uint8_t* is_text;   // [B, S] bytes, nonzero = text
  int64_t batch_stride;     // elements from one sequence to the next; the last dimension is dense
  const int32_t* seq_lens;  // [B] in [0, S]
  int32_t* index;           // [B, max_text]; nothing is written beyond it
  int32_t* count;           // [B], all text rows, also those that did not fit: the caller compares it with max_text
  int64_t batch, rows, max_text;
};

// One item = one sequence.
SPARROW_CPU_KERNEL(text_compact_cpu, TextCompactParams)

}  // namespace sparrow
