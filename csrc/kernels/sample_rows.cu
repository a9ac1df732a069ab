// sample_rows in four launches; the definition is in ops/sample_rows.h.
//   1 top    (chunk, row)  the chunk's largest number with its index, and its first NaN
//   2 cut    (row)         the row's maximum; the answer where nothing is drawn; the cuts of top-k and top-p
//   3 draw   (chunk, row)  the best noisy score among the chunk's kept tokens
//   4 merge  (row)
// Cuts come from a radix descent over the ordered bits of the float, 10 bits a pass, with a histogram in shared memory:
// no sort. Counts and probabilities are integers there (a float32 probability times 2^shift), so sums are exact and do
// not depend on the order of the atomics. The k-th largest of the threads' maxima bounds the k-th largest from below;
// for top-p, tokens too improbable to matter even if all V were like that are left out. What is above the bound, few
// tokens as a rule, is kept in shared memory, and the descent goes over that; where it does not fit, over the row.
// Draw: -log(-log u) < -log(1 - u), so a token can only reach the score s of the row's maximum (or a better one) where
// 1 - u < e^(d - s), a float32 test with a margin above its rounding; what passes is scored in float64.
#include "kernels/launchers.cuh"

#include "kernels/logits.cuh"
#include "kernels/noise.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kCutThreads = 512, kCutWarps = kCutThreads / 32;
constexpr int kDigitBits = 10, kBins = 1 << kDigitBits;
static_assert(kBins == 32 * 32, "two warp-wide selections find a digit");
constexpr float kMaxNoise = 22.874f;  // > 33 log 2 > any -log(-log u)
constexpr float kMargin = 1e-4f;      // above the float32 rounding of d - s where |d - s| < 32
using Count = unsigned long long;     // the type of 64-bit atomics

struct TopPart {
  uint64_t key;       // of the largest number; 0: none
  int64_t first_nan;  // INT64_MAX: none
};
struct DrawPart {
  double score;
  int64_t index;
};
struct RowState {
  double lead;     // the score of the row's first maximum
  int64_t answer;  // the result where nothing is drawn, else -1
  int64_t top_index;
  int64_t last_tie;  // kept: x > cut, and x == cut up to this index
  float top, cut;
  int64_t spare;
};
static_assert(sizeof(TopPart) + sizeof(DrawPart) == kSampleChunkBytes && sizeof(RowState) == kSampleRowBytes, "sizes");

struct Scratch {
  TopPart* top;
  DrawPart* draw;
  RowState* row;
  int chunks;
};

template <class T>
__device__ __forceinline__ const T* row_of(const SampleRowsParams& p, int64_t row) {
  return static_cast<const T*>(p.logits) + Rows{p.nodes, p.stride_b, p.stride_n}.at(row);
}

__device__ __forceinline__ double gumbel(uint32_t word) {
  const double u = (static_cast<double>(word) + .5) * 0x1p-32;
  return -log(-log(u));
}

// (x - m) / temperature, in halves: the difference of two finite floats may overflow.
struct Scale {
  float half_max, twice_inverse;
  __device__ Scale(float m, float temperature) : half_max(m * .5f), twice_inverse(2.f / temperature) {}
  __device__ __forceinline__ float operator()(float x) const { return (x * .5f - half_max) * twice_inverse; }
};

// ---- 1: top ----
template <class T>
__global__ void __launch_bounds__(kThreads) sample_top_kernel(SampleRowsParams p, Scratch s) {
  await_previous_kernel();
  SMEM_ARRAY(uint64_t, best_of, kWarps);
  SMEM_ARRAY(uint32_t, nan_of, kWarps);
  const int64_t begin = blockIdx.x % s.chunks * kSampleChunk;
  const int64_t left = p.vocab - begin < kSampleChunk ? p.vocab - begin : kSampleChunk;
  const T* x = row_of<T>(p, blockIdx.x / s.chunks) + begin;
  const bool aligned = is_aligned(x);
  uint64_t best = 0;
  uint32_t first_nan = ~0u;
#pragma unroll 4
  for (int i = threadIdx.x * kVec<T>; i < left; i += kThreads * kVec<T>) {
    float v[kVec<T>];
    load_vec(v, x + i, left - i, aligned);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) {
      const uint32_t index = static_cast<uint32_t>(begin + i + j), value = ordered(v[j]);
      const uint64_t key = pair_key(value, index);
      if (value == 0) first_nan = index < first_nan ? index : first_nan;
      if (value != 0 && key > best) best = key;
    }
  }
  best = warp_max(best);
  first_nan = __reduce_min_sync(kAllLanes, first_nan);
  if (threadIdx.x % 32 == 0) {
    best_of[threadIdx.x / 32] = best;
    nan_of[threadIdx.x / 32] = first_nan;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    best = best_of[w] > best ? best_of[w] : best;
    first_nan = nan_of[w] < first_nan ? nan_of[w] : first_nan;
  }
  s.top[blockIdx.x] = {best, first_nan == ~0u ? INT64_MAX : int64_t{first_nan}};
}

// ---- 2: cut ----
// The leading bits of a key that T's values can differ in: for float16 the sign, float32's exponent, 10 of mantissa.
template <class T>
constexpr int kKeyBits = std::is_same_v<T, float>           ? 32
                         : std::is_same_v<T, __nv_bfloat16> ? 16
                                                            : 19;

// 64-bit sums by native 32-bit atomics: whoever overflows the low word carries.
struct Histogram {
  uint32_t low[kBins], high[kBins];
  __device__ __forceinline__ void add(uint32_t bin, Count x) {
    const uint32_t part = static_cast<uint32_t>(x), before = atomicAdd(&low[bin], part);
    const uint32_t rest = static_cast<uint32_t>(x >> 32) + (before + part < part ? 1u : 0u);
    if (rest != 0) atomicAdd(&high[bin], rest);
  }
  __device__ __forceinline__ Count at(int bin) const { return Count{high[bin]} << 32 | low[bin]; }
};

constexpr int kWarpKept = 128;  // keys a warp can keep

struct CutShared {
  Histogram histogram;
  uint32_t kept[kCutWarps * kWarpKept];
  Count sums[kCutWarps];
  Count above;
  uint32_t digit;
  uint64_t top;
  int64_t first_nan, last_tie;
};

// All elements of a row, each by one thread: f(value). Four loads are under way.
template <class T>
struct RowScan {
  const T* x;
  int64_t vocab;
  template <class F>
  __device__ __forceinline__ void operator()(const F& f) const {
    constexpr int kAhead = 4, kStep = kCutThreads * kVec<T>;
    const bool aligned = is_aligned(x);
    for (int64_t begin = threadIdx.x * kVec<T>; begin < vocab; begin += kAhead * kStep) {
      float v[kAhead][kVec<T>];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (begin + a * kStep < vocab) load_vec(v[a], x + begin + a * kStep, vocab - begin - a * kStep, aligned);
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int j = 0; j < kVec<T>; ++j)
          if (begin + a * kStep + j < vocab) f(v[a][j]);
    }
  }
};

// The values a warp has kept, in shared memory.
struct KeptScan {
  const uint32_t* keys;  // the warp's
  int count;
  template <class F>
  __device__ __forceinline__ void operator()(const F& f) const {
    for (int i = threadIdx.x % 32; i < count; i += 32) f(from_ordered(keys[i]));
  }
};

// Keeps the values with key >= floor. False where they are too many for a warp; of the whole block.
template <class T>
__device__ __forceinline__ bool keep(const RowScan<T>& row, uint32_t floor, CutShared& sh, KeptScan& kept) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool aligned = is_aligned(row.x);
  uint32_t* to = sh.kept + warp * kWarpKept;
  int count = 0;
  for (int64_t begin = warp * 32 * kVec<T>; begin < row.vocab; begin += kCutThreads * kVec<T>) {
    const int64_t i = begin + lane * kVec<T>;
    float v[kVec<T>];
    if (i < row.vocab) load_vec(v, row.x + i, row.vocab - i, aligned);
    unsigned mine = 0;
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) mine |= i + j < row.vocab && ordered(v[j]) >= floor ? 1u << j : 0u;
    if (!__any_sync(kAllLanes, mine != 0)) continue;
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) {
      const unsigned votes = __ballot_sync(kAllLanes, mine >> j & 1);
      const int at = count + __popc(votes & ((1u << lane) - 1));
      if ((mine >> j & 1) && at < kWarpKept) to[at] = ordered(v[j]);
      count += __popc(votes);
    }
  }
  kept = {to, count};
  return __syncthreads_or(count > kWarpKept) == 0;
}
struct OwnValue {
  float value;
  template <class F>
  __device__ __forceinline__ void operator()(const F& f) const {
    f(value);
  }
};
struct One {
  __device__ __forceinline__ Count operator()(float) const { return 1; }
};
// The probability, relative to the maximum's, in units of 1 / unit.
struct Probability {
  Scale scale;
  float unit;
  __device__ __forceinline__ Count operator()(float x) const { return static_cast<Count>(expf(scale(x)) * unit); }
};

__device__ __forceinline__ Count block_sum(Count x, CutShared& sh) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.sums[threadIdx.x / 32] = x;
  __syncthreads();
  Count sum = 0;
  for (int w = 0; w < kCutWarps; ++w) sum += sh.sums[w];
  return sum;
}

// The first lane with weight > 0 at which `above` plus the weights up to it reaches target, else the last lane with
// weight > 0. Adds the weights before that lane to `above`. One warp.
__device__ __forceinline__ int select_lane(Count weight, Count& above, double target) {
  const int lane = threadIdx.x % 32;
  Count upto = weight;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Count other = __shfl_up_sync(kAllLanes, upto, step);
    if (lane >= step) upto += other;
  }
  const unsigned some = __ballot_sync(kAllLanes, weight > 0);
  const unsigned reached = __ballot_sync(kAllLanes, weight > 0 && static_cast<double>(above + upto) >= target);
  const int found = reached ? __ffs(static_cast<int>(reached)) - 1 : some ? 31 - __clz(static_cast<int>(some)) : 31;
  above += __shfl_sync(kAllLanes, upto - weight, found);
  return found;
}

// The digit, from the largest down, at which the histogram's weight reaches target. One warp.
__device__ __forceinline__ void select_digit(CutShared& sh, double target) {
  const int lane = threadIdx.x % 32;
  Count above = sh.above, weight = 0;
  for (int j = 0; j < 32; ++j)
    weight += sh.histogram.at((31 - lane) * 32 + (j + lane) % 32);  // skewed: no bank conflict
  const int group = 31 - select_lane(weight, above, target);
  const int bin = 31 - select_lane(sh.histogram.at(group * 32 + 31 - lane), above, target);
  __syncwarp();  // every lane has read sh.above
  if (lane == 0) {
    sh.above = above;
    sh.digit = static_cast<uint32_t>(group * 32 + bin);
  }
}

// The key of the largest value at which the weight of the values >= it reaches target, among those with key >= floor;
// the smallest one where none does. sh.above: the weight of the larger ones. The whole block.
template <class T, class Scan, class Weight>
__device__ __forceinline__ uint32_t descend(const Scan& scan, uint32_t floor, double target, const Weight& weight,
                                            CutShared& sh) {
  uint32_t prefix = 0;
  int known = 32;
  __syncthreads();
  if (threadIdx.x == 0) sh.above = 0;
  while (known > 32 - kKeyBits<T>) {
    const int rest = known - (32 - kKeyBits<T>), bits = rest < kDigitBits ? rest : kDigitBits, shift = known - bits;
    for (int i = threadIdx.x; i < kBins; i += kCutThreads) sh.histogram.low[i] = sh.histogram.high[i] = 0;
    __syncthreads();
    scan([&](float x) {
      const uint32_t key = ordered(x);
      if (key < floor || static_cast<uint64_t>(key ^ prefix) >> known != 0) return;
      sh.histogram.add((key >> shift) & ((1u << bits) - 1), weight(x));
    });
    __syncthreads();
    if (threadIdx.x < 32) select_digit(sh, target);
    __syncthreads();
    prefix |= sh.digit << shift;
    known = shift;
  }
  if (prefix >> 31 == 0) prefix |= static_cast<uint32_t>((uint64_t{1} << known) - 1);  // bits T has not: ones there
  return prefix;
}

// What a row's cuts are taken from: its values with key >= floor, kept in shared memory where `fits`.
template <class T>
struct Survivors {
  const RowScan<T>& row;
  uint32_t floor = 1;  // NaN's key is 0
  bool fits = false;
  KeptScan kept{nullptr, 0};
  __device__ __forceinline__ void raise(uint32_t to, CutShared& sh) {
    if (to <= floor) return;
    floor = to;
    if (!fits) fits = keep(row, floor, sh, kept);
  }
  template <class Weight>
  __device__ __forceinline__ uint32_t descend_to(double target, const Weight& weight, CutShared& sh) const {
    return fits ? descend<T>(kept, floor, target, weight, sh) : descend<T>(row, floor, target, weight, sh);
  }
};

template <class T>
__device__ __forceinline__ uint32_t kth_largest(Survivors<T>& from, int64_t k, CutShared& sh) {
  if (k <= kCutThreads) {
    float top = -INFINITY;
    from.row([&](float x) { top = fmaxf(top, x); });
    from.raise(descend<T>(OwnValue{top}, 1, static_cast<double>(k), One{}, sh), sh);
  }
  return from.descend_to(static_cast<double>(k), One{}, sh);
}

// The index of the row's `count`-th value with this key, INT64_MAX where there are no more of them. The whole block;
// warps own consecutive stretches.
template <class T>
__device__ __forceinline__ int64_t nth_tie(const RowScan<T>& scan, uint32_t key, Count count, CutShared& sh) {
  constexpr int kStep = 32 * kVec<T>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t stretch = (scan.vocab + kCutWarps * kStep - 1) / (kCutWarps * kStep) * kStep;
  const int64_t begin = warp * stretch, end = begin + stretch < scan.vocab ? begin + stretch : scan.vocab;
  const bool aligned = is_aligned(scan.x);
  const auto ties = [&](int64_t i) {  // a bit for each of the lane's elements from i on
    unsigned found = 0;
    if (i >= end) return found;
    float v[kVec<T>];
    load_vec(v, scan.x + i, end - i, aligned);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) found |= i + j < end && ordered(v[j]) == key ? 1u << j : 0u;
    return found;
  };
  Count mine = 0;
  for (int64_t i = begin; i < end; i += kStep) mine += __popc(ties(i + lane * kVec<T>));
  const Count total = block_sum(mine, sh);  // leaves the warps' sums
  if (threadIdx.x == 0) sh.last_tie = INT64_MAX;
  __syncthreads();
  Count before = 0;
  for (int w = 0; w < warp; ++w) before += sh.sums[w];
  if (total > count && before < count && count <= before + sh.sums[warp]) {
    for (int64_t i = begin; before < count; i += kStep) {
      unsigned found = ties(i + lane * kVec<T>);
      Count upto = __popc(found);
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const Count other = __shfl_up_sync(kAllLanes, upto, step);
        if (lane >= step) upto += other;
      }
      Count left = count - before - (upto - __popc(found));  // which of this lane's it is
      if (count > before + (upto - __popc(found)) && count <= before + upto) {
        while (--left) found &= found - 1;
        sh.last_tie = i + lane * kVec<T> + __ffs(static_cast<int>(found)) - 1;
      }
      before += __shfl_sync(kAllLanes, upto, 31);
    }
  }
  __syncthreads();
  return sh.last_tie;
}

// Top-p among the values with key >= low: sets cut and last_tie.
template <class T>
__device__ void nucleus(Survivors<T>& from, uint32_t low, float m, float temperature, double top_p, CutShared& sh,
                        RowState& out) {
  const RowScan<T>& scan = from.row;
  const int bits = 32 - __clz(static_cast<int>(scan.vocab - 1));  // V <= 2^bits
  const float unit = ldexpf(1.f, 62 - bits);                      // V probabilities fit 63 bits
  const Probability weight{Scale(m, temperature), unit};
  Count mine = 0;
  const auto add = [&](float x) { mine += ordered(x) >= low ? weight(x) : 0; };
  if (from.fits)
    from.kept(add);
  else
    scan(add);
  const Count total = block_sum(mine, sh);
  // V tokens at `negligible` or less weigh less than 1 - top_p together: each has top_p before it, and is dropped.
  const double share = static_cast<double>(total) / unit / static_cast<double>(scan.vocab);
  const uint32_t rounded = ordered(static_cast<float>(m + temperature * log(.9 * (1. - top_p) * share)));
  const uint32_t negligible = rounded > 0 ? rounded - 1 : 0;  // rounded down
  const double target = top_p * static_cast<double>(total);
  from.raise(negligible > low ? negligible : low, sh);
  const uint32_t key = from.descend_to(target, weight, sh);
  const float value = from_ordered(key);
  const double above = static_cast<double>(sh.above), each = static_cast<double>(weight(value));
  // Tie i (from 0) is kept where i = 0 or above + i each < target.
  double count = each > 0 ? ceil((target - above) / each) : 9e18;
  if (count > 1 && above + (count - 1) * each >= target) count -= 1;
  if (each > 0 && above + count * each < target) count += 1;
  out.last_tie = nth_tie(scan, key, count < 1 ? 1 : static_cast<Count>(count), sh);
  out.cut = value;
}

__device__ __forceinline__ void merge_top(const Scratch& s, int64_t row, CutShared& sh) {
  if (threadIdx.x < 32) {
    uint64_t best = 0;
    int64_t first_nan = INT64_MAX;
    for (int c = threadIdx.x; c < s.chunks; c += 32) {
      const TopPart part = s.top[row * s.chunks + c];
      best = part.key > best ? part.key : best;
      first_nan = part.first_nan < first_nan ? part.first_nan : first_nan;
    }
    best = warp_max(best);
    for (int step = 16; step > 0; step /= 2) {
      const int64_t other = __shfl_xor_sync(kAllLanes, first_nan, step);
      first_nan = other < first_nan ? other : first_nan;
    }
    if (threadIdx.x == 0) {
      sh.top = best;
      sh.first_nan = first_nan;
    }
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kCutThreads) sample_cut_kernel(SampleRowsParams p, Scratch s) {
  await_previous_kernel();
  SMEM_ARRAY(CutShared, shared, 1);
  CutShared& sh = shared[0];
  const int64_t row = blockIdx.x, b = row / p.nodes;
  merge_top(s, row, sh);
  const float temperature = p.temperature[b];
  RowState out{0.,        -1, key_index(sh.top), INT64_MAX, sh.top == 0 ? -INFINITY : from_ordered(key_value(sh.top)),
               -INFINITY, 0};
  if (!(temperature >= kMinTemperature) || out.top == -INFINITY) {
    out.answer = sh.first_nan < INT64_MAX ? sh.first_nan : out.top_index;
  } else if (out.top == INFINITY) {
    out.answer = out.top_index;
  } else {
    const RowScan<T> scan{row_of<T>(p, row), p.vocab};
    const int64_t k = p.top_k == nullptr ? 0 : p.top_k[b];
    const float top_p = p.top_p == nullptr ? 1.f : p.top_p[b];
    Survivors<T> from{scan};
    uint32_t low = 1;
    if (k > 0 && k < p.vocab) {
      low = kth_largest(from, k, sh);
      out.cut = from_ordered(low);
    }
    if (top_p < 1.f) nucleus(from, low, out.top, temperature, top_p > 0.f ? top_p : 0., sh, out);
  }
  if (threadIdx.x != 0) return;
  if (out.answer < 0) {
    uint32_t words[4];
    const Noise noise{static_cast<uint64_t>(p.seed[b]), static_cast<uint64_t>(p.position[row])};
    noise.words(words, static_cast<uint32_t>(out.top_index / 4));
    const int w = static_cast<int>(out.top_index % 4);
    out.lead = gumbel(w == 0 ? words[0] : w == 1 ? words[1] : w == 2 ? words[2] : words[3]);
  }
  s.row[row] = out;
}

// ---- 3: draw ----
__device__ __forceinline__ void offer(DrawPart& best, double score, int64_t index) {
  if (score > best.score || (score == best.score && index < best.index)) best = {score, index};
}
__device__ __forceinline__ DrawPart warp_best(DrawPart best) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const double score = __shfl_xor_sync(kAllLanes, best.score, step);
    offer(best, score, __shfl_xor_sync(kAllLanes, best.index, step));
  }
  return best;
}

// The tokens i .. i + 3 of values x.
__device__ __forceinline__ void draw_four(const float* x, int64_t i, const RowState& row, const Scale& scale,
                                          double temperature, const Noise& noise, DrawPart& best) {
  const float lead = static_cast<float>(best.score) - kMargin;
  const float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
  if (!(top >= row.cut) || scale(top) - lead < -kMaxNoise) return;  // top is NaN where all are
  uint32_t words[4];
  noise.words(words, static_cast<uint32_t>(i / 4));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float room = static_cast<float>(~words[j] >> 1);  // floor(2^31 (1 - u)) rounds 1 - u down
    const float reach = __expf(scale(x[j]) - lead) * 0x1p31f;
    if (!(room <= reach) || !(x[j] >= row.cut) || (x[j] == row.cut && i + j > row.last_tie)) continue;
    offer(best, (static_cast<double>(x[j]) - row.top) / temperature + gumbel(words[j]), i + j);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_draw_kernel(SampleRowsParams p, Scratch s) {
  await_previous_kernel();
  SMEM_ARRAY(DrawPart, parts, kWarps);
  const int64_t r = blockIdx.x / s.chunks, begin = blockIdx.x % s.chunks * kSampleChunk, b = r / p.nodes;
  const RowState row = s.row[r];
  if (row.answer >= 0) return;
  const int64_t left = p.vocab - begin < kSampleChunk ? p.vocab - begin : kSampleChunk;
  const T* x = row_of<T>(p, r) + begin;
  const bool aligned = is_aligned(x);
  const float temperature = p.temperature[b];
  const Scale scale(row.top, temperature);
  const Noise noise{static_cast<uint64_t>(p.seed[b]), static_cast<uint64_t>(p.position[r])};
  DrawPart best{row.lead, row.top_index};
  const uint64_t chunk_top = s.top[blockIdx.x].key;
  const float most = chunk_top == 0 ? -INFINITY : from_ordered(key_value(chunk_top));
  if (most >= row.cut && scale(most) - (static_cast<float>(row.lead) - kMargin) >= -kMaxNoise) {
    for (int i = threadIdx.x * kVec<T>; i < left; i += kThreads * kVec<T>) {
      float v[kVec<T>];
      load_vec(v, x + i, left - i, aligned);
#pragma unroll
      for (int j = 0; j < kVec<T>; j += 4) draw_four(v + j, begin + i + j, row, scale, temperature, noise, best);
    }
  }
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) offer(best, parts[w].score, parts[w].index);
  s.draw[blockIdx.x] = best;
}

// ---- 4: merge ----
__global__ void __launch_bounds__(kThreads) sample_merge_kernel(Scratch s, int64_t rows, int64_t* out) {
  await_previous_kernel();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const int64_t answer = s.row[row].answer;
  DrawPart best{-INFINITY, INT64_MAX};
  for (int c = threadIdx.x % 32; answer < 0 && c < s.chunks; c += 32)
    offer(best, s.draw[row * s.chunks + c].score, s.draw[row * s.chunks + c].index);
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) out[row] = answer >= 0 ? answer : best.index;
}

template <class T>
cudaError_t launch(const SampleRowsParams& p, const Scratch& s, cudaStream_t stream) {
  const int64_t rows = p.batch * p.nodes;
  const dim3 blocks(static_cast<unsigned>(rows * s.chunks)), threads(kThreads), row_blocks(static_cast<unsigned>(rows));
  cudaError_t error = SPARROW_LAUNCH((sample_top_kernel<T>), blocks, threads, 0, stream, p, s);
  if (error != cudaSuccess) return error;
  error = SPARROW_LAUNCH((sample_cut_kernel<T>), row_blocks, dim3(kCutThreads), 0, stream, p, s);
  if (error != cudaSuccess) return error;
  error = SPARROW_LAUNCH((sample_draw_kernel<T>), blocks, threads, 0, stream, p, s);
  if (error != cudaSuccess) return error;
  return SPARROW_LAUNCH(sample_merge_kernel, dim3(static_cast<unsigned>((rows + kWarps - 1) / kWarps)), threads, 0,
                        stream, s, rows, p.out);
}

}  // namespace

cudaError_t sample_rows_cuda(const SampleRowsParams& p, void* scratch, cudaStream_t stream) {
  const int64_t rows = p.batch * p.nodes, chunks = sample_chunks(p.vocab);
  if (rows == 0) return cudaSuccess;
  if (rows * chunks > INT32_MAX) return cudaErrorInvalidConfiguration;  // the grid
  Scratch s;
  s.top = static_cast<TopPart*>(scratch);
  s.draw = reinterpret_cast<DrawPart*>(s.top + rows * chunks);
  s.row = reinterpret_cast<RowState*>(s.draw + rows * chunks);
  s.chunks = static_cast<int>(chunks);
  return with_dtype(p.dtype, [&](auto element) { return launch<typename decltype(element)::type>(p, s, stream); });
}

}  // namespace sparrow
