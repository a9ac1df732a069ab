#include "ops/tree_attention.h"

#include <type_traits>

#include "cpu/pack.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

constexpr int64_t kBlock = kWordBits;  // keys of one block; 64 tree slots are one mask word

// The rows of one split item and where they stand. Both products are one register-tiled gemm (gemm_tile.h):
//   scores [rows, keys] = q [rows, dim] keys [dim, keys];   out [rows, dim] += weights [rows, keys] values [keys, dim]
// A block of keys is packed once for all rows. Where units are bfloat16 pairs the weights are rounded to bfloat16, as
// matrix units do; their sum is not.
//
// A row's keys in order, the visible prefix and then the tree slots it sees, have the ranks 0, 1, 2, ... Splits and
// blocks are cut by rank, and lanes and pairs are taken by rank. So a row's bits depend on the sequence of its keys,
// not on the slots between them: a node of a tree gets what it gets when its path is decoded token by token. Whole
// blocks of the prefix are common to all rows. The rest, less than a block of the prefix and the tree, is a list of
// keys per node: scores are computed for all, each row's own ones are collected (`pending`), and a node's values are
// gathered.
template <class T>
struct Tile {
  explicit Tile(const TreeAttentionParams& params)
      : p(params) {}  // leaves the buffers (600 KB of stack at most) as they are
  const TreeAttentionParams& p;
  int64_t b, head, row0, rows, cols;  // cols = padded dim
  float* out;                         // [rows, cols]: unnormalised sums, in the workspace
  static constexpr int kPer = Units<T>::kPer;
  static constexpr int64_t kQueryStride = kMaxHeadDim / kPer, kWeightStride = kBlock / kPer;
  alignas(64) Unit<T> q[kRowTile * kQueryStride];
  alignas(64) Unit<T> keys[kQueryStride * kBlock];
  alignas(64) Unit<T> values[kWeightStride * kMaxHeadDim];
  alignas(64) float scores[kRowTile * kBlock];
  alignas(64) Unit<T> packed[kPer == 1 ? 1 : kRowTile * kWeightStride];
  alignas(64) vf sum[kRowTile];  // of the weights, lane by lane
  float top[kRowTile], shrink[kRowTile];
  // By row: scores to come. By a node's first row: how many, the cache rows of their keys, and the next slot's rank.
  alignas(64) float pending[kRowTile * 2 * kBlock];
  int64_t pending_row[kRowTile * 2 * kBlock], count[kRowTile], rank[kRowTile];
  alignas(64) T gathered[kBlock * kMaxHeadDim];

  const T* key(int64_t row) const { return static_cast<const T*>(p.k) + b * p.k_b + row * p.k_s + head * p.k_h; }
  const T* value(int64_t row) const { return static_cast<const T*>(p.v) + b * p.v_b + row * p.v_s + head * p.v_h; }
  // The weights 2^(s - top) in units; they overwrite the scores where a unit is a float.
  Unit<T>* weights() {
    if constexpr (kPer == 1)
      return scores;
    else
      return packed;
  }
};

template <class T>
void pack_query(Tile<T>& t) {
  const auto& p = t.p;
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t n = (t.row0 + r) / group, h = t.head * group + (t.row0 + r) % group;
    pack_row(static_cast<const T*>(p.q) + t.b * p.q_b + n * p.q_n + h * p.q_h, p.dim, t.q + r * t.kQueryStride);
  }
}

// 2^x to about 1 ulp for x <= 0, NaN stays NaN; 2^0 is exactly 1. Scores are kept in units of log 2.
SPARROW_INLINE vf exp2(vf x) {
  const vi tiny = x < splat(-126.f);
  x = max(splat(-126.f), x);
  const vf shifter = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const vf t = x + shifter, r = x - (t - shifter);
  vf p = splat(1.53533619e-4f);
  p = fma(p, r, splat(1.33988744e-3f));
  p = fma(p, r, splat(9.61843736e-3f));
  p = fma(p, r, splat(5.55033247e-2f));
  p = fma(p, r, splat(2.40226479e-1f));
  p = fma(p, r, splat(6.93147203e-1f));
  p = fma(p, r, splat(1.f));
  const vi scale = (as_int(t) + 127) << 23;  // the low mantissa bits of t; NaN times anything is NaN
  return as_float(as_int(p * as_float(scale)) & ~tiny);
}

SPARROW_INLINE float max_of(vf v) {
  float lane[kLanes];
  store(lane, v);
  float m = lane[0];
  for (int i = 1; i < kLanes; ++i) m = lane[i] > m ? lane[i] : m;
  return m;
}

// Scores of rows [r0, r1) to weights 2^(s - top), with the running top and sum.
template <class T>
SPARROW_INLINE void softmax_rows(Tile<T>& t, int64_t r0, int64_t r1, int64_t lanes) {
  for (int64_t r = r0; r < r1; ++r) {
    float* s = t.scores + r * kBlock;
    vf high = splat(-__builtin_inff());
    for (int64_t j = 0; j < lanes; j += kLanes) high = max(load(s + j), high);  // NaN is passed over
    const float before = t.top[r], here = max_of(high), top = here > before ? here : before;
    const float base = top == -__builtin_inff() ? 0.f : top;
    t.top[r] = top;
    t.shrink[r] = before == top ? 1.f : exp2(splat(before - base))[0];
    vf sum = t.sum[r] * t.shrink[r];
    for (int64_t j = 0; j < lanes; j += kLanes) {
      const vf w = exp2(load(s + j) - base);  // NaN: a NaN key or an infinite score shows in the output
      store_rounded(t.weights() + r * t.kWeightStride, j, w);
      sum += w;
    }
    t.sum[r] = sum;
  }
}

// Rows of T are rows of units: values can be read where they are.
template <class T>
constexpr bool kDirect = std::is_same_v<T, Unit<T>>;

// out rows [r0, r1) = out shrink + weights values, `count` rows of x.
template <class T>
void add_values(Tile<T>& t, int64_t r0, int64_t r1, const T* x, int64_t x_stride, int64_t count) {
  float* out = t.out + r0 * t.cols;
  const Unit<T>* values = t.values;
  int64_t stride = t.cols;
  const bool direct = kDirect<T> && t.cols == t.p.dim;
  if constexpr (kDirect<T>) {
    if (direct) {
      values = x;
      stride = x_stride;
    }
  }
  if (!direct) pack_rows(x, x_stride, count, ~uint64_t{0}, t.p.dim, t.values, t.cols);
  gemm(
      t.weights() + r0 * t.kWeightStride, t.kWeightStride, r1 - r0, values, stride, t.cols,
      (count + t.kPer - 1) / t.kPer,
      [&](int64_t r, int64_t c) { return load(out + r * t.cols + c) * t.shrink[r0 + r]; },
      [&](int64_t r, int64_t c, vf x) { store(out + r * t.cols + c, x); });
}

// Scores of all rows and `count` <= kBlock keys from cache row `row` on.
template <class T>
void score(Tile<T>& t, int64_t row, int64_t count) {
  const auto& p = t.p;
  const int64_t lanes = (count + kLanes - 1) / kLanes * kLanes;
  const float scale = p.scale * 1.44269504088896341f;  // log2 e
  pack_columns(t.key(row), p.k_s, count, p.dim, t.keys, kBlock);
  gemm(
      t.q, t.kQueryStride, t.rows, t.keys, kBlock, lanes, (p.dim + t.kPer - 1) / t.kPer,
      [](int64_t, int64_t) { return vf{}; },
      [&](int64_t r, int64_t c, vf x) { store(t.scores + r * kBlock + c, x * scale); });
}

// f(node, r0, r1): the tile's rows [r0, r1) are the node's.
template <class T, class F>
SPARROW_INLINE void each_node(const Tile<T>& t, F f) {
  const int64_t group = t.p.heads / t.p.kv_heads;
  for (int64_t r0 = 0; r0 < t.rows;) {
    const int64_t node = (t.row0 + r0) / group, end = (node + 1) * group - t.row0, r1 = end < t.rows ? end : t.rows;
    f(node, r0, r1);
    r0 = r1;
  }
}

// Attends what is pending, in blocks; less than a block only where `all`.
template <class T>
void settle(Tile<T>& t, bool all) {
  const int64_t dim = t.p.dim;
  each_node(t, [&](int64_t, int64_t r0, int64_t r1) {
    int64_t* rows = t.pending_row + r0 * 2 * kBlock;
    while (t.count[r0] >= kBlock || (all && t.count[r0] > 0)) {
      const int64_t n = t.count[r0] < kBlock ? t.count[r0] : kBlock, rest = t.count[r0] - n;
      for (int64_t r = r0; r < r1; ++r) {
        float *to = t.scores + r * kBlock, *from = t.pending + r * 2 * kBlock;
        std::memcpy(to, from, sizeof(float) * n);
        for (int64_t j = n; j < kBlock; ++j) to[j] = -__builtin_inff();
        std::memmove(from, from + n, sizeof(float) * rest);
      }
      for (int64_t j = 0; j < n; ++j) std::memcpy(t.gathered + j * dim, t.value(rows[j]), sizeof(T) * dim);
      std::memmove(rows, rows + n, sizeof *rows * rest);
      t.count[r0] = rest;
      softmax_rows(t, r0, r1, (n + kLanes - 1) / kLanes * kLanes);
      add_values(t, r0, r1, t.gathered, dim, n);
    }
  });
}

// `count` < kBlock keys that every row sees join the pending ones.
template <class T>
void append_range(Tile<T>& t, int64_t row, int64_t count) {
  if (count <= 0) return;
  score(t, row, count);
  each_node(t, [&](int64_t, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      std::memcpy(t.pending + r * 2 * kBlock + t.count[r0], t.scores + r * kBlock, sizeof(float) * count);
    for (int64_t j = 0; j < count; ++j) t.pending_row[r0 * 2 * kBlock + t.count[r0] + j] = row + j;
    t.count[r0] += count;
  });
  settle(t, false);
}

// Cache rows [begin, end): every row of the tile sees all of them. What is left of the last block stays pending.
template <class T>
void attend_range(Tile<T>& t, int64_t begin, int64_t end) {
  for (; begin + kBlock <= end; begin += kBlock) {
    score(t, begin, kBlock);
    softmax_rows(t, 0, t.rows, kBlock);
    add_values(t, 0, t.rows, t.value(begin), t.p.v_s, kBlock);
  }
  append_range(t, begin, end - begin);
}

// Bits of block w that node n sees, of the slots below `slots`.
SPARROW_INLINE uint64_t word_of(const TreeAttentionParams& p, int64_t b, int64_t n, int64_t w, int64_t start,
                                int64_t slots) {
  const auto below = [w](int64_t count) {  // bits of this block with a slot number < count
    const int64_t bits = count - w * kWordBits;
    return bits >= kWordBits ? ~uint64_t{0} : bits <= 0 ? 0 : (uint64_t{1} << bits) - 1;
  };
  if (p.anc == nullptr) return below(start + n + 1 < slots ? start + n + 1 : slots);
  if (w >= p.words) return 0;
  return static_cast<uint64_t>(p.anc[(b * p.nodes + n) * p.words + w]) & below(slots);
}

// The tree slots whose rank lies in [begin, end).
template <class T>
void attend_tree(Tile<T>& t, int64_t text, int64_t begin, int64_t end) {
  const auto& p = t.p;
  const int64_t start = first_slot(p, t.b), slots = start + used_nodes(p, t.b), base = p.lens[t.b];
  for (int64_t r = 0; r < t.rows; ++r) t.rank[r] = text;
  for (int64_t w = 0; w * kBlock < slots; ++w) {
    score(t, base + w * kBlock, slots - w * kBlock < kBlock ? slots - w * kBlock : kBlock);
    each_node(t, [&](int64_t node, int64_t r0, int64_t r1) {
      for (uint64_t word = word_of(p, t.b, node, w, start, slots); word != 0; word &= word - 1) {
        const int64_t rank = t.rank[r0]++, j = __builtin_ctzll(word);
        if (rank < begin || rank >= end) continue;
        const int64_t at = t.count[r0]++;
        t.pending_row[r0 * 2 * kBlock + at] = base + w * kBlock + j;
        for (int64_t r = r0; r < r1; ++r) t.pending[r * 2 * kBlock + at] = t.scores[r * kBlock + j];
      }
    });
    settle(t, false);
  }
}

template <class T>
void split_item(const TreeAttentionParams& p, int64_t item) {
  const int64_t group = p.heads / p.kv_heads, all_rows = p.nodes * group, tiles = attention_row_tiles(all_rows);
  const int64_t tile = item % tiles, s = item / tiles % p.splits, head = item / tiles / p.splits % p.kv_heads;
  const int64_t b = item / tiles / p.splits / p.kv_heads;
  const int64_t text = visible_prefix(p, b), used = used_nodes(p, b) * group, last = used_splits(p, b) - 1;
  const int64_t row0 = all_rows * tile / tiles, end_row = all_rows * (tile + 1) / tiles;
  const int64_t rows = (end_row < used ? end_row : used) - row0;
  if (s > last || rows <= 0) return;

  const int64_t slot = ((b * p.splits + s) * p.kv_heads + head) * all_rows + row0;
  Tile<T> t(p);
  t.b = b;
  t.head = head;
  t.row0 = row0;
  t.rows = rows;
  t.cols = padded_dim(p.dim);
  t.out = p.partial + slot * t.cols;
  std::memset(t.out, 0, sizeof(float) * rows * t.cols);
  for (int64_t r = 0; r < rows; ++r) {
    t.top[r] = -__builtin_inff();
    t.sum[r] = vf{};
    t.count[r] = 0;
  }
  pack_query(t);

  // The visible prefix is rows [0, cut) and rows [cut + gap, len) of the cache.
  const int64_t gap = p.lens[b] - text, cut = gap > 0 ? p.anchors : text;
  const int64_t begin = s * p.split_keys, end = begin + p.split_keys;
  const int64_t stop = end < text ? end : text;  // of the prefix
  attend_range(t, begin, stop < cut ? stop : cut);
  if (gap > 0) {
    settle(t, true);  // a window moves with the prefix: its blocks begin where it begins
    attend_range(t, (begin > cut ? begin : cut) + gap, stop + gap);
  }
  if (end > text || s == last) attend_tree(t, text, begin, s == last ? INT64_MAX : end);
  settle(t, true);
  for (int64_t r = 0; r < rows; ++r) {
    p.stats[(slot + r) * 2] = t.top[r];
    p.stats[(slot + r) * 2 + 1] = reduce_add(t.sum[r]);
  }
}

template <class T>
SPARROW_INLINE void store_row(T* out, int64_t dim, int64_t d, vf x) {
  if (d + kLanes <= dim)
    store(out + d, x);
  else
    store_n(out + d, x, static_cast<int>(dim - d));
}

template <class T>
void combine_item(const TreeAttentionParams& p, int64_t item) {
  const int64_t h = item % p.heads, n = item / p.heads % p.nodes, b = item / p.heads / p.nodes;
  T* out = static_cast<T*>(p.out) + b * p.o_b + n * p.o_n + h * p.o_h;
  const bool used = n < used_nodes(p, b);
  if (!used && !p.zero_unused) return;
  const int64_t group = p.heads / p.kv_heads, cols = padded_dim(p.dim), rows = p.nodes * group;
  const int64_t splits = used ? used_splits(p, b) : 0;
  const int64_t first = (b * p.splits * p.kv_heads + h / group) * rows + n * group + h % group;
  const int64_t step = p.kv_heads * rows;  // from a split to the next

  float top = -__builtin_inff();
  for (int64_t s = 0; s < splits; ++s) {
    const float x = p.stats[(first + s * step) * 2];
    top = x > top ? x : top;
  }
  const float base = top == -__builtin_inff() ? 0.f : top;
  float sum = 0.f;
  for (int64_t s = 0; s < splits; ++s) {
    float* stats = p.stats + (first + s * step) * 2;
    stats[0] = exp2(splat(stats[0] - base))[0];  // from here on the split's weight
    sum = sum + stats[0] * stats[1];
  }
  const float inverse = sum == 0.f ? 0.f : 1.f / sum;
  for (int64_t d = 0; d < p.dim; d += kLanes) {
    vf x = vf{};
    for (int64_t s = 0; s < splits; ++s)
      x = fma(splat(p.stats[(first + s * step) * 2]), load(p.partial + (first + s * step) * cols + d), x);
    store_row(out, p.dim, d, x * inverse);
  }
  if (p.lse != nullptr)
    p.lse[item] = sum == 0.f ? -__builtin_inff() : base * 0.693147180559945309f + __builtin_logf(sum);
}

template <void (*kF32)(const TreeAttentionParams&, int64_t), void (*kBf16)(const TreeAttentionParams&, int64_t),
          void (*kF16)(const TreeAttentionParams&, int64_t)>
void each_item(const TreeAttentionParams& p, int64_t begin, int64_t end) {
  const auto run = p.dtype == DType::f32 ? kF32 : p.dtype == DType::bf16 ? kBf16 : kF16;
  for (int64_t i = begin; i < end; ++i) run(p, i);
}

}  // namespace

void tree_attention_split_cpu(const TreeAttentionParams& p, int64_t begin, int64_t end) {
  each_item<split_item<float>, split_item<bf16_t>, split_item<f16_t>>(p, begin, end);
}

void tree_attention_combine_cpu(const TreeAttentionParams& p, int64_t begin, int64_t end) {
  each_item<combine_item<float>, combine_item<bf16_t>, combine_item<f16_t>>(p, begin, end);
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
