#include "ops/tree_attention.h"

#include "cpu/gemm_tile.h"

namespace sparrow {
namespace SPARROW_ISA {
namespace {

// Which keys of a block a row sees: all of a full block, the same first few, or those of its own word.
enum class Seen { block, some, own };

constexpr int64_t kBlock = kWordBits;  // keys of one block: a block of tree slots is one mask word

// The rows of one split item and where they stand. The keys of a block are packed twice: `keys` [dim][kBlock] and
// `values` [kBlock][padded dim]; both products are then the same register-tiled gemm.
template <class T>
struct Tile {
  explicit Tile(const TreeAttentionParams& params) : p(params) {}  // leaves the buffers as they are
  const TreeAttentionParams& p;
  int64_t b, head, row0, rows, cols;  // cols = padded dim
  float* out;                         // [rows, cols]: unnormalised sums, in the workspace
  alignas(64) float q[kRowTile * kMaxHeadDim];
  alignas(64) float keys[kMaxHeadDim * kBlock];
  alignas(64) float values[kBlock * kMaxHeadDim];
  alignas(64) float scores[kRowTile * kBlock];
  alignas(64) vf sum[kRowTile];  // of exp(s - top), lane by lane
  float top[kRowTile], shrink[kRowTile];
};

SPARROW_INLINE float top_of(vf v) { return reduce_max(v); }

// Lane i = all ones where bit (shift + i) of the word is set.
SPARROW_INLINE vi lanes_of(uint64_t word, int64_t shift) {
  vi lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const vi bits = (static_cast<int32_t>((word >> shift) & 0xffffu) - vi{}) >> lane;
  return -(bits & 1);
}

template <class T>
SPARROW_INLINE void widen_row(const T* x, int64_t dim, int64_t cols, float* y) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(y + d, load(x + d));
  if (d < dim) store(y + d, load_n(x + d, static_cast<int>(dim - d)));
  for (d = (d < dim ? d + kLanes : d); d < cols; ++d) y[d] = 0.f;
}

template <class T>
void pack_query(Tile<T>& t) {
  const auto& p = t.p;
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t n = (t.row0 + r) / group, h = t.head * group + (t.row0 + r) % group;
    widen_row(static_cast<const T*>(p.q) + t.b * p.q_b + n * p.q_n + h * p.q_h, p.dim, t.cols, t.q + r * t.cols);
  }
}

// Keys and values [0, count) of the block that starts at cache row `row`; nothing beyond them is read.
template <class T>
void pack_keys(Tile<T>& t, int64_t row, int64_t count, int64_t lanes) {
  const auto& p = t.p;
  const T* k = static_cast<const T*>(p.k) + t.b * p.k_b + row * p.k_s + t.head * p.k_h;
  for (int64_t j = 0; j < lanes; ++j)
    for (int64_t d = 0; d < p.dim; ++d) t.keys[d * kBlock + j] = j < count ? to_f32(k[j * p.k_s + d]) : 0.f;
}

// Values of keys outside `seen` become 0.
template <class T>
void pack_values(Tile<T>& t, int64_t row, int64_t count, uint64_t seen) {
  const auto& p = t.p;
  const T* v = static_cast<const T*>(p.v) + t.b * p.v_b + row * p.v_s + t.head * p.v_h;
  for (int64_t j = 0; j < count; ++j) {
    float* to = t.values + j * t.cols;
    if (seen >> j & 1)
      widen_row(v + j * p.v_s, p.dim, t.cols, to);
    else
      std::memset(to, 0, sizeof(float) * t.cols);
  }
}

template <class T>
bool values_finite(const Tile<T>& t, int64_t count) {
  vf zero = vf{};
  for (int64_t i = 0; i < count * t.cols; i += kLanes) zero += load(t.values + i) - load(t.values + i);
  return reduce_add(zero) == 0.f;
}

// Scores to weights exp(s - top), with the running top and sum. Word: which keys of the block a row sees.
template <bool kMasked, class T, class Word>
SPARROW_INLINE void softmax_rows(Tile<T>& t, int64_t lanes, Word word) {
  const vf none = splat(-__builtin_inff());
  for (int64_t r = 0; r < t.rows; ++r) {
    float* s = t.scores + r * kBlock;
    vf high = none;
    for (int64_t j = 0; j < lanes; j += kLanes) {
      if constexpr (kMasked) store(s + j, select(lanes_of(word(r), j), load(s + j), none));
      high = max(load(s + j), high);
    }
    const float before = t.top[r], here = top_of(high), top = here > before ? here : before;
    const float base = top == -__builtin_inff() ? 0.f : top;
    t.top[r] = top;
    t.shrink[r] = before == top ? 1.f : exp(splat(before - base))[0];
    vf sum = t.sum[r] * t.shrink[r];
    for (int64_t j = 0; j < lanes; j += kLanes) {
      const vf x = load(s + j) - base;
      const vf w = select(x == x, exp(x), x);  // NaN stays: a NaN key or an infinite score shows in the output
      store(s + j, w);
      sum += w;
    }
    t.sum[r] = sum;
  }
}

// out rows [r0, r1) = out shrink + weights values
template <class T>
void add_values(Tile<T>& t, int64_t r0, int64_t r1, int64_t count) {
  float* out = t.out + r0 * t.cols;
  gemm(
      t.scores + r0 * kBlock, kBlock, r1 - r0, t.values, t.cols, t.cols, count,
      [&](int64_t r, int64_t c) { return load(out + r * t.cols + c) * t.shrink[r0 + r]; },
      [&](int64_t r, int64_t c, vf x) { store(out + r * t.cols + c, x); });
}

// Attends `count` keys from cache row `row` on; word(r) = those that row r sees.
template <Seen kSeen, class T, class Word>
void attend(Tile<T>& t, int64_t row, int64_t count, Word word) {
  const auto& p = t.p;
  const int64_t lanes = (count + kLanes - 1) / kLanes * kLanes;
  pack_keys(t, row, count, lanes);
  gemm(
      t.q, t.cols, t.rows, t.keys, kBlock, lanes, p.dim, [](int64_t, int64_t) { return vf{}; },
      [&](int64_t r, int64_t c, vf x) { store(t.scores + r * kBlock + c, x * p.scale); });
  softmax_rows<kSeen != Seen::block>(t, lanes, word);
  pack_values(t, row, count, ~uint64_t{0});
  if (kSeen != Seen::own || values_finite(t, count)) return add_values(t, 0, t.rows, count);
  // A weight of 0 does not hide NaN or infinity: an unseen node's values must not reach a row.
  for (int64_t r = 0; r < t.rows; ++r) {
    pack_values(t, row, count, word(r));
    add_values(t, r, r + 1, count);
  }
}

// Cache rows [begin, end): every row of the tile sees all of them.
template <class T>
void attend_range(Tile<T>& t, int64_t begin, int64_t end) {
  for (; begin + kBlock <= end; begin += kBlock)
    attend<Seen::block>(t, begin, kBlock, [](int64_t) { return ~uint64_t{0}; });
  if (begin < end) {
    const uint64_t word = (uint64_t{1} << (end - begin)) - 1;
    attend<Seen::some>(t, begin, end - begin, [=](int64_t) { return word; });
  }
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

template <class T>
void attend_tree(Tile<T>& t) {
  const auto& p = t.p;
  const int64_t group = p.heads / p.kv_heads, start = p.tree_start == nullptr ? 0 : p.tree_start[t.b];
  const int64_t slots = start + used_nodes(p, t.b), base = p.lens[t.b];
  for (int64_t w = 0; w * kBlock < slots; ++w) {
    const int64_t count = slots - w * kBlock < kBlock ? slots - w * kBlock : kBlock;
    attend<Seen::own>(t, base + w * kBlock, count,
                      [&](int64_t r) { return word_of(p, t.b, (t.row0 + r) / group, w, start, slots); });
  }
}

template <class T>
void split_item(const TreeAttentionParams& p, int64_t item) {
  const int64_t group = p.heads / p.kv_heads, all_rows = p.nodes * group, tiles = attention_row_tiles(all_rows);
  const int64_t tile = item % tiles, s = item / tiles % p.splits, head = item / tiles / p.splits % p.kv_heads;
  const int64_t b = item / tiles / p.splits / p.kv_heads;
  const int64_t text = visible_prefix(p, b), last = text / p.split_keys, used = used_nodes(p, b) * group;
  const int64_t row0 = all_rows * tile / tiles, end_row = all_rows * (tile + 1) / tiles;
  const int64_t rows = (end_row < used ? end_row : used) - row0;
  if (s > last || rows <= 0) return;

  const int64_t slot = ((b * p.splits + s) * p.kv_heads + head) * all_rows + row0;
  Tile<T> t(p);
  t.b = b, t.head = head, t.row0 = row0, t.rows = rows, t.cols = padded_dim(p.dim);
  t.out = p.partial + slot * t.cols;
  std::memset(t.out, 0, sizeof(float) * rows * t.cols);
  for (int64_t r = 0; r < rows; ++r) t.top[r] = -__builtin_inff(), t.sum[r] = vf{};
  pack_query(t);

  // The visible prefix is rows [0, cut) and rows [cut + gap, len) of the cache.
  const int64_t gap = p.lens[b] - text, cut = gap > 0 ? p.anchors : text;
  const int64_t begin = s * p.split_keys, end = begin + p.split_keys < text ? begin + p.split_keys : text;
  attend_range(t, begin, end < cut ? end : cut);
  attend_range(t, (begin > cut ? begin : cut) + gap, end + gap);
  if (s == last) attend_tree(t);
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
  const int64_t splits = used ? visible_prefix(p, b) / p.split_keys + 1 : 0;
  const int64_t first = (b * p.splits * p.kv_heads + h / group) * rows + n * group + h % group;
  const int64_t step = p.kv_heads * rows;  // from a split to the next

  float top = -__builtin_inff();
  for (int64_t s = 0; s < splits; ++s) {
    const float x = p.stats[(first + s * step) * 2];
    top = x > top ? x : top;
  }
  const float base = top == -__builtin_inff() ? 0.f : top;
  const auto weight = [&](int64_t s) { return exp(splat(p.stats[(first + s * step) * 2] - base))[0]; };
  float sum = 0.f;
  for (int64_t s = 0; s < splits; ++s) sum += weight(s) * p.stats[(first + s * step) * 2 + 1];
  const float inverse = sum == 0.f ? 0.f : 1.f / sum;
  for (int64_t d = 0; d < p.dim; d += kLanes) {
    vf x = vf{};
    for (int64_t s = 0; s < splits; ++s) x = fma(splat(weight(s)), load(p.partial + (first + s * step) * cols + d), x);
    store_row(out, p.dim, d, x * inverse);
  }
  if (p.lse != nullptr) p.lse[item] = sum == 0.f ? -__builtin_inff() : base + __builtin_logf(sum);
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
