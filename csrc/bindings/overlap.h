// Whether strided blocks of memory share a byte. Pure functions, no torch.
#pragma once
#include <cstdint>

namespace sparrow {

// Runs of `run` bytes at base + sum_d x_d stride[d], 0 <= x_d < count[d]. run = 0: nothing.
struct Block {
  static constexpr int kDims = 8;
  uintptr_t base = 0;
  int64_t run = 0;
  int dims = 0;
  bool coarse = false;                  // more bytes than there are
  int64_t count[kDims], stride[kDims];  // counts above 1, strides in bytes

  // Adds the next dimension outwards. Where there are more than kDims, what there is becomes one run.
  void add(int64_t n, int64_t step) {
    if (run == 0 || n == 1) return;
    if (n == 0) {
      run = 0;
      return;
    }
    if (dims == 0 && step == run) {
      run *= n;
    } else if (dims > 0 && step == stride[dims - 1] * count[dims - 1]) {
      count[dims - 1] *= n;
    } else if (dims < kDims) {
      count[dims] = n;
      stride[dims++] = step;
    } else {
      run = span() + (n - 1) * step;
      dims = 0;
      coarse = true;
    }
  }
  // Bytes from the first to behind the last.
  int64_t span() const {
    int64_t bytes = run;
    for (int d = 0; d < dims; ++d) bytes += (count[d] - 1) * stride[d];
    return bytes;
  }
};

// False only where no byte belongs to two elements: every stride steps over all that the smaller ones reach. (Layouts
// whose elements interleave without meeting count as meeting.)
inline bool meets_itself(const Block& b) {
  if (b.coarse) return true;
  int64_t reach = b.run;
  bool used[Block::kDims] = {};
  for (int n = 0; n < b.dims; ++n) {
    int next = -1;
    for (int d = 0; d < b.dims; ++d)
      if (!used[d] && (next < 0 || b.stride[d] < b.stride[next])) next = d;
    if (b.stride[next] < reach) return true;
    used[next] = true;
    reach += (b.count[next] - 1) * b.stride[next];
  }
  return false;
}

// Is there an address difference sum_i z_i step[i], low[i] <= z_i <= high[i], in [first, last]?
struct Differences {
  int terms = 0;
  int64_t step[2 * Block::kDims], low[2 * Block::kDims], high[2 * Block::kDims];  // steps descending, distinct
  int budget = 4096;  // sums tried; running out counts as found

  void add(int64_t stride, int64_t from, int64_t to) {
    if (stride == 0) return;
    int at = 0;
    while (at < terms && step[at] > stride) ++at;
    if (at == terms || step[at] != stride) {
      for (int i = terms++; i > at; --i) {
        step[i] = step[i - 1];
        low[i] = low[i - 1];
        high[i] = high[i - 1];
      }
      step[at] = stride;
      low[at] = high[at] = 0;
    }
    low[at] += from;
    high[at] += to;
  }
  bool reach(int i, int64_t first, int64_t last) {
    if (i == terms) return first <= 0 && 0 <= last;
    if (--budget < 0) return true;
    int64_t least = 0, most = 0;  // of the terms behind this one
    for (int j = i + 1; j < terms; ++j) {
      least += low[j] * step[j];
      most += high[j] * step[j];
    }
    const int64_t from = divide_up(first - most, step[i]), to = divide_down(last - least, step[i]);
    for (int64_t z = from > low[i] ? from : low[i]; z <= (to < high[i] ? to : high[i]); ++z)
      if (reach(i + 1, first - z * step[i], last - z * step[i])) return true;
    return false;
  }
  static int64_t divide_down(int64_t a, int64_t b) { return a / b - (a % b < 0); }
  static int64_t divide_up(int64_t a, int64_t b) { return -divide_down(-a, b); }
};

// Whether a and b share a byte: exact, but for patterns of strides so entangled that the budget ends.
inline bool meet(const Block& a, const Block& b) {
  if (a.run == 0 || b.run == 0) return false;
  const int64_t apart = static_cast<int64_t>(b.base - a.base);
  if (apart >= a.span() || -apart >= b.span()) return false;
  Differences d;  // of b's run from a's: they meet where the difference lies in (-b.run, a.run)
  for (int i = 0; i < a.dims; ++i) d.add(a.stride[i], 1 - a.count[i], 0);
  for (int i = 0; i < b.dims; ++i) d.add(b.stride[i], 0, b.count[i] - 1);
  return d.reach(0, 1 - b.run - apart, a.run - 1 - apart);
}

}  // namespace sparrow
