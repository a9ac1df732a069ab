// The split kernel on matrix units (mma.sync m16n8k16), for 16-bit elements and head_dim <= 128.
//   Each warp owns 16 rows: their queries as mma fragments, their output as fp32 accumulators. K and V tiles of 64 keys
//   go through a ring of stages in shared memory, filled by cp.async one iteration after the other warps have left the
//   stage (one barrier a tile). Rows in shared memory are cut into chunks of 16 bytes, placed so that the eight rows of
//   an ldmatrix phase fall into different banks: chunk ^ row where rows are a multiple of 128 bytes, else an odd pitch.
//   Full prefix tiles carry no mask code; the ragged last one and the tree tiles have a 64-bit word per row.
//   head_dim is padded to D with zeros in shared memory.
//   16 rows or fewer: four warps hold the same rows and take 16 keys of each tile; they are merged at the end.
//   A weight of 0 does not hide NaN or infinity in a value, so a tree tile with such values is summed key by key over
//   what each row sees: a node never touches the output of one that does not see it.
//   Drafting (kDraft): queries are roped on their way into shared memory; keys and values of the new rows are taken
//   from qkv, roped, used from shared memory and written to the cache by the first row tile's block. No block reads a
//   cache row that another one writes.
#pragma once
#include "kernels/attention.cuh"
#include "kernels/ptx.cuh"
#include "kernels/rope.cuh"

namespace sparrow {

// How the warps of a block share a tile of rows x 64 keys.
template <int kRowWarps_, int kKeyWarps_>
struct Family {
  static constexpr int kRowWarps = kRowWarps_, kKeyWarps = kKeyWarps_;  // warp = row warp * kKeyWarps + key warp
  static constexpr int kWarps = kRowWarps * kKeyWarps, kKeys = kTileKeys / kKeyWarps;
};

template <class T, int D, class F>
struct AttentionTile {
  static constexpr int kThreads = F::kWarps * 32, kRows = F::kRowWarps * 16, kChunks = D / 8;
  static constexpr bool kSwizzled = kChunks % 8 == 0;
  static constexpr int kPitch = (kSwizzled ? kChunks : kChunks | 1) * 8;  // elements
  static constexpr int kStage = kTileKeys * kPitch;
  T *q, *k, *v;
  size_t bytes;
  __host__ __device__ AttentionTile(unsigned char* base, int stages) {
    SmemCarver c{base};
    q = c.take<T>(kRows * kPitch);
    k = c.take<T>(static_cast<size_t>(stages) * kStage);
    v = c.take<T>(static_cast<size_t>(stages) * kStage);
    bytes = c.at;
  }
  // Chunk c of row r.
  __device__ static __forceinline__ T* at(T* tile, int r, int c) {
    return tile + r * kPitch + (kSwizzled ? c ^ (r & 7) : c) * 8;
  }
};

// What a warp knows of its 16 rows. A lane holds rows lane / 4 and lane / 4 + 8.
template <int D>
struct WarpRows {
  uint32_t q[D / 16][4];
  float acc[D / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
};

// Block-wide constants.
template <class T, int D, class F>
struct SplitBlock {
  using Tile = AttentionTile<T, D, F>;
  const DraftAttentionParams& d;
  const TreeAttentionParams& p;
  const Tile s;
  const int stages, b, head, group, row_tiles, tile, split, row0;
  const Work w;
  const int begin, end, prefix_tiles, tiles;  // split > w.last: the block has no keys, these mean nothing

  __device__ __forceinline__ SplitBlock(const DraftAttentionParams& params, unsigned char* raw, int stage_count)
      : d(params),
        p(params.attention),
        s(raw, stage_count),
        stages(stage_count),
        b(static_cast<int>(blockIdx.z)),
        head(static_cast<int>(blockIdx.y)),
        group(static_cast<int>(p.heads / p.kv_heads)),
        row_tiles((static_cast<int>(p.nodes) * group + Tile::kRows - 1) / Tile::kRows),
        tile(static_cast<int>(blockIdx.x) % row_tiles),
        split(static_cast<int>(blockIdx.x) / row_tiles),
        row0(tile * Tile::kRows),
        w(p, b),
        begin(split * w.split_keys),
        end(min(begin + w.split_keys, w.text)),
        prefix_tiles((end - begin + kTileKeys - 1) / kTileKeys),
        tiles(prefix_tiles + (split == w.last ? (w.slots + kTileKeys - 1) / kTileKeys : 0)) {}
  __device__ __forceinline__ int dim() const { return static_cast<int>(p.dim); }
  __device__ __forceinline__ const T* qkv(int n, int h) const {
    return static_cast<const T*>(d.qkv) + b * d.qkv_b + n * d.qkv_t + h * dim();
  }
  __device__ __forceinline__ const float* angles(int n) const { return d.cos_sin + (b * p.nodes + n) * dim(); }
};

__device__ __forceinline__ void zero16(void* to) { *static_cast<uint4*>(to) = make_uint4(0, 0, 0, 0); }

// Chunks c and c + dim / 16 of a roped head to row r of a tile; also to `global` unless null.
template <class Tile, class T>
__device__ __forceinline__ void rope_to(T* tile, int r, int c, const T* x, const float* cos_sin, int dim, T* global) {
  const int half = dim / 2;
  auto low = load_pack<T, 8>(x + c * 8), high = load_pack<T, 8>(x + half + c * 8);
  rope_pairs(low, high, cos_sin + c * 8, half);
  store_pack(Tile::at(tile, r, c), low);
  store_pack(Tile::at(tile, r, c + half / 8), high);
  if (global != nullptr) {
    store_pack(global + c * 8, low);
    store_pack(global + half + c * 8, high);
  }
}

// The block's queries; rows beyond those in use are zero.
template <bool kDraft, class T, int D, class F>
__device__ __forceinline__ void load_queries(const SplitBlock<T, D, F>& x) {
  using Tile = AttentionTile<T, D, F>;
  const int rows = x.w.used * x.group, dim = x.dim();
  for (int i = threadIdx.x; i < Tile::kRows * Tile::kChunks; i += Tile::kThreads) {
    const int r = i / Tile::kChunks, c = i % Tile::kChunks, row = x.row0 + r;
    const bool ok = row < rows && c * 8 < dim;
    const int n = row / x.group, h = x.head * x.group + row % x.group;
    if constexpr (kDraft) {
      if (!ok)
        zero16(Tile::at(x.s.q, r, c));
      else if (c * 16 < dim)
        rope_to<Tile, T>(x.s.q, r, c, x.qkv(n, h), x.angles(n), dim, nullptr);
    } else {
      const T* q = static_cast<const T*>(x.p.q) + x.b * x.p.q_b + n * x.p.q_n + h * x.p.q_h + c * 8;
      ptx::cp_async16(Tile::at(x.s.q, r, c), ok ? q : static_cast<const T*>(x.p.q), ok);
    }
  }
}

// Tree slots [from, to) of the new rows, which are rows 0.. of a tile: rope, keep, and append to the cache.
template <class T, int D, class F>
__device__ __forceinline__ void append_rows(const SplitBlock<T, D, F>& x, T* sk, T* sv, int first, int from, int to) {
  using Tile = AttentionTile<T, D, F>;
  const int dim = x.dim();
  const bool owner = x.tile == 0;
  for (int i = threadIdx.x; i < (to - from) * Tile::kChunks; i += Tile::kThreads) {
    const int slot = from + i / Tile::kChunks, c = i % Tile::kChunks, r = slot - first, n = slot - x.w.start;
    if (c * 8 >= dim) {
      zero16(Tile::at(sk, r, c));
      zero16(Tile::at(sv, r, c));
      continue;
    }
    const int64_t row = x.w.tree_row(slot);
    T* k = static_cast<T*>(x.d.k_cache) + x.b * x.p.k_b + row * x.p.k_s + x.head * x.p.k_h;
    T* v = static_cast<T*>(x.d.v_cache) + x.b * x.p.v_b + row * x.p.v_s + x.head * x.p.v_h;
    const int key_head = static_cast<int>(x.p.heads) + x.head;
    if (c * 16 < dim) rope_to<Tile, T>(sk, r, c, x.qkv(n, key_head), x.angles(n), dim, owner ? k : nullptr);
    const auto value = load_pack<T, 8>(x.qkv(n, key_head + static_cast<int>(x.p.kv_heads)) + c * 8);
    store_pack(Tile::at(sv, r, c), value);
    if (owner) store_pack(v + c * 8, value);
  }
}

// A full prefix tile of whole rows that lie together in the cache: a thread keeps its column and goes down the rows by
// a constant step, which leaves three instructions a cp.async.
template <class T, int D, class F>
__device__ __forceinline__ void load_full_tile(const SplitBlock<T, D, F>& x, int first, T* sk, T* sv) {
  using Tile = AttentionTile<T, D, F>;
  constexpr int kStep = Tile::kThreads / Tile::kChunks;
  const int r = static_cast<int>(threadIdx.x) / Tile::kChunks, c = static_cast<int>(threadIdx.x) % Tile::kChunks;
  const int64_t row = x.w.prefix_row(first) + r;
  const T* k = static_cast<const T*>(x.p.k) + x.b * x.p.k_b + x.head * x.p.k_h + row * x.p.k_s + c * 8;
  const T* v = static_cast<const T*>(x.p.v) + x.b * x.p.v_b + x.head * x.p.v_h + row * x.p.v_s + c * 8;
  const int64_t k_step = kStep * x.p.k_s, v_step = kStep * x.p.v_s;
#pragma unroll
  for (int i = 0; i < kTileKeys; i += kStep) {
    ptx::cp_async16(Tile::at(sk, r + i, c), k, true);
    ptx::cp_async16(Tile::at(sv, r + i, c), v, true);
    k += k_step;
    v += v_step;
  }
}

// Tile t into its stage: prefix tiles first, then tree tiles. Keys that are not there become zeros.
template <bool kDraft, class T, int D, class F>
__device__ __forceinline__ void load_tile(const SplitBlock<T, D, F>& x, int t, int stage) {
  using Tile = AttentionTile<T, D, F>;
  const int dim = x.dim();
  T *sk = x.s.k + stage * Tile::kStage, *sv = x.s.v + stage * Tile::kStage;
  const T* k = static_cast<const T*>(x.p.k) + x.b * x.p.k_b + x.head * x.p.k_h;
  const T* v = static_cast<const T*>(x.p.v) + x.b * x.p.v_b + x.head * x.p.v_h;
  const bool tree = t >= x.prefix_tiles;
  const int first = tree ? (t - x.prefix_tiles) * kTileKeys : x.begin + t * kTileKeys;
  const int limit = tree ? x.w.slots : x.end;
  if constexpr (Tile::kThreads % Tile::kChunks == 0)
    if (!tree && first + kTileKeys <= limit && dim == D && (first >= x.w.cut || first + kTileKeys <= x.w.cut))
      return load_full_tile(x, first, sk, sv);
  const int fresh = kDraft && tree ? min(x.w.start, limit) : limit;  // slots from here on come from qkv
#pragma unroll 4
  for (int i = threadIdx.x; i < kTileKeys * Tile::kChunks; i += Tile::kThreads) {
    const int r = i / Tile::kChunks, c = i % Tile::kChunks, key = first + r;
    if (kDraft && key >= fresh && key < limit) continue;
    const bool ok = key < limit && c * 8 < dim;
    const int64_t row = !ok ? 0 : tree ? x.w.tree_row(key) : x.w.prefix_row(key);
    const int at = ok ? c * 8 : 0;
    ptx::cp_async16(Tile::at(sk, r, c), k + row * x.p.k_s + at, ok);
    ptx::cp_async16(Tile::at(sv, r, c), v + row * x.p.v_s + at, ok);
  }
  if constexpr (kDraft) {
    const int from = max(first, fresh), to = min(first + kTileKeys, limit);
    if (tree && from < to) append_rows(x, sk, sv, first, from, to);
  }
}

// Scores of the warp's keys to weights 2^(s - top), with the running top and sum; rescales what was summed before. Bit
// n*8 + i of a row's word (already shifted by the lane's column): this lane's column i of n-tile n is seen.
template <bool kMasked, int D, int kKeys>
__device__ __forceinline__ void softmax_tile(WarpRows<D>& rows, float (&score)[kKeys / 8][4], const uint64_t (&word)[2],
                                             float scale) {
  float high[2] = {rows.top[0], rows.top[1]};
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[n][i] *= scale;
      if constexpr (kMasked)
        if (((word[i / 2] >> (n * 8 + i % 2)) & 1) == 0) score[n][i] = -INFINITY;
      high[i / 2] = fmaxf(high[i / 2], score[n][i]);  // NaN is passed over
    }
  float base[2], shrink[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    high[r] = fmaxf(high[r], __shfl_xor_sync(0xffffffffu, high[r], 1));
    high[r] = fmaxf(high[r], __shfl_xor_sync(0xffffffffu, high[r], 2));
    base[r] = high[r] == -INFINITY ? 0.f : high[r];
    shrink[r] = ptx::exp2_approx(rows.top[r] - base[r]);
    rows.top[r] = high[r];
    rows.sum[r] *= shrink[r];
  }
#pragma unroll
  for (int d = 0; d < D / 8; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i) rows.acc[d][i] *= shrink[i / 2];
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[n][i] = ptx::exp2_approx(score[n][i] - base[i / 2]);
      rows.sum[i / 2] += score[n][i];
    }
}

// Weights as mma fragments: keys 16 j .. 16 j + 15 of this warp.
template <class T, int kKeys>
__device__ __forceinline__ void weight_fragment(uint32_t (&pf)[4], const float (&score)[kKeys / 8][4], int j) {
  pf[0] = ptx::pack2<T>(score[2 * j][0], score[2 * j][1]);
  pf[1] = ptx::pack2<T>(score[2 * j][2], score[2 * j][3]);
  pf[2] = ptx::pack2<T>(score[2 * j + 1][0], score[2 * j + 1][1]);
  pf[3] = ptx::pack2<T>(score[2 * j + 1][2], score[2 * j + 1][3]);
}

// acc += weights values, of the keys each row sees, one by one. `scratch` [16][64] is this row warp's: the weights
// cross lanes through it (columns of other key warps stay untouched).
template <class F, class Tile, int D, class T>
__device__ void add_seen_values(WarpRows<D>& rows, const float (&score)[F::kKeys / 8][4], const uint64_t (&word)[2],
                                T* scratch, T* sv, int key0) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < F::kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      scratch[(lane / 4 + i / 2 * 8) * kTileKeys + key0 + n * 8 + lane % 4 * 2 + i % 2] = static_cast<T>(score[n][i]);
  __syncwarp();
#pragma unroll 1
  for (int key = key0; key < key0 + F::kKeys; ++key)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if ((word[r] >> key & 1) == 0) continue;
      const float weight = static_cast<float>(scratch[(lane / 4 + r * 8) * kTileKeys + key]);
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float v = static_cast<float>(Tile::at(sv, key, d)[lane % 4 * 2 + i]);
          rows.acc[d][r * 2 + i] = fmaf(weight, v, rows.acc[d][r * 2 + i]);
        }
    }
  __syncwarp();
}

// One tile. word: what the lane's two rows see of it (kMasked); by_key: it holds values that are not finite.
template <bool kMasked, class F, class Tile, int D, class T>
__device__ __forceinline__ void attend(WarpRows<D>& rows, T* sk, T* sv, const uint64_t (&word)[2], float scale,
                                       [[maybe_unused]] bool by_key, [[maybe_unused]] T* scratch) {
  constexpr int kKeys = F::kKeys;
  const int lane = threadIdx.x % 32, key0 = threadIdx.x / 32 % F::kKeyWarps * kKeys;
  float score[kKeys / 8][4] = {};
#pragma unroll
  for (int ks = 0; ks < D / 16; ++ks)
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t kf[4];
      ptx::ldmatrix_x4(kf, Tile::at(sk, key0 + n * 16 + lane % 8 + lane / 16 * 8, ks * 2 + lane / 8 % 2));
      ptx::mma_m16n8k16<T>(score[2 * n], rows.q[ks], kf[0], kf[1]);
      ptx::mma_m16n8k16<T>(score[2 * n + 1], rows.q[ks], kf[2], kf[3]);
    }
  const int shift = key0 + lane % 4 * 2;
  const uint64_t mine[2] = {word[0] >> shift, word[1] >> shift};
  softmax_tile<kMasked, D, kKeys>(rows, score, mine, scale);
  if constexpr (kMasked)
    if (by_key) return add_seen_values<F, Tile, D>(rows, score, word, scratch, sv, key0);
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
    uint32_t pf[4];
    weight_fragment<T, kKeys>(pf, score, j);
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t vf[4];
      ptx::ldmatrix_x4_trans(vf, Tile::at(sv, key0 + j * 16 + lane % 16, d * 2 + lane / 16));
      ptx::mma_m16n8k16<T>(rows.acc[2 * d], pf, vf[0], vf[1]);
      ptx::mma_m16n8k16<T>(rows.acc[2 * d + 1], pf, vf[2], vf[3]);
    }
  }
}

// Whether a tile of values holds NaN or infinity; of the whole block, which must call it together.
template <class Tile, class T>
__device__ __forceinline__ bool any_not_finite(T* sv) {
  constexpr uint32_t kExponent = std::is_same_v<T, __nv_bfloat16> ? 0x7f80u : 0x7c00u;
  int found = 0;
  for (int i = threadIdx.x; i < kTileKeys * Tile::kChunks; i += Tile::kThreads) {
    const uint4 x = *reinterpret_cast<const uint4*>(Tile::at(sv, i / Tile::kChunks, i % Tile::kChunks));
    for (const uint32_t two : {x.x, x.y, x.z, x.w})
      found |= (two & kExponent) == kExponent || (two >> 16 & kExponent) == kExponent;
  }
  return __syncthreads_or(found) != 0;
}

// The key warps' sums become those of key warp 0. The stages are free by now: lane by lane, acc to the keys' part
// ([key warp][D / 8][32] of 16 bytes: two stages), top and sum to the values' part.
template <class F, class Tile, int D>
__device__ __forceinline__ void merge_key_warps(WarpRows<D>& rows, void* keys_part, void* values_part) {
  static_assert(F::kRowWarps == 1 && sizeof(float4) * F::kKeyWarps * D / 8 * 32 <= 2 * 2 * Tile::kStage);
  float4 *acc = static_cast<float4*>(keys_part), *stats = static_cast<float4*>(values_part);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  if (warp > 0) {
#pragma unroll
    for (int d = 0; d < D / 8; ++d)
      acc[(warp * (D / 8) + d) * 32 + lane] =
          make_float4(rows.acc[d][0], rows.acc[d][1], rows.acc[d][2], rows.acc[d][3]);
    stats[warp * 32 + lane] = make_float4(rows.top[0], rows.top[1], rows.sum[0], rows.sum[1]);
  }
  __syncthreads();
  if (warp > 0) return;
  for (int from = 1; from < F::kKeyWarps; ++from) {
    const float4 other = stats[from * 32 + lane];
    const float top[2] = {other.x, other.y}, sum[2] = {other.z, other.w};
    float own[2], theirs[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float high = fmaxf(rows.top[r], top[r]), base = high == -INFINITY ? 0.f : high;
      own[r] = ptx::exp2_approx(rows.top[r] - base);
      theirs[r] = ptx::exp2_approx(top[r] - base);
      rows.top[r] = high;
      rows.sum[r] = rows.sum[r] * own[r] + sum[r] * theirs[r];
    }
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      const float4 x = acc[(from * (D / 8) + d) * 32 + lane];
      rows.acc[d][0] = rows.acc[d][0] * own[0] + x.x * theirs[0],
      rows.acc[d][1] = rows.acc[d][1] * own[0] + x.y * theirs[0];
      rows.acc[d][2] = rows.acc[d][2] * own[1] + x.z * theirs[1],
      rows.acc[d][3] = rows.acc[d][3] * own[1] + x.w * theirs[1];
    }
  }
}

// Two neighbouring columns a lane; the result itself where the grid has one split, else the workspace.
template <class T, int D, class F>
__device__ __forceinline__ void store_rows(const SplitBlock<T, D, F>& x, WarpRows<D>& rows) {
  const TreeAttentionParams& p = x.p;
  const int lane = threadIdx.x % 32, dim = x.dim();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 1);
    rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 2);
    const int row = x.row0 + threadIdx.x / 32 / F::kKeyWarps * 16 + lane / 4 + r * 8, n = row / x.group;
    const bool used = n < x.w.used;
    if (n >= p.nodes || (!used && (p.splits > 1 || !p.zero_unused))) continue;
    if (p.splits > 1) {
      const int64_t slot = partial_row(p, x.b, x.split, x.head, row);
      float* to = p.partial + slot * padded_dim(p.dim);
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
        if (d * 8 < dim)
          *reinterpret_cast<float2*>(to + d * 8 + lane % 4 * 2) =
              make_float2(rows.acc[d][r * 2], rows.acc[d][r * 2 + 1]);
      if (lane % 4 == 0) *reinterpret_cast<float2*>(p.stats + slot * 2) = make_float2(rows.top[r], rows.sum[r]);
      continue;
    }
    const bool nothing = !used || rows.sum[r] == 0.f;  // NaN goes on
    const float inverse = nothing ? 0.f : 1.f / rows.sum[r];
    const int64_t h = x.head * x.group + row % x.group;
    T* to = static_cast<T*>(p.out) + x.b * p.o_b + n * p.o_n + h * p.o_h;
#pragma unroll
    for (int d = 0; d < D / 8; ++d)
      if (d * 8 < dim)
        *reinterpret_cast<uint32_t*>(to + d * 8 + lane % 4 * 2) = ptx::pack2<T>(
            nothing ? 0.f : rows.acc[d][r * 2] * inverse, nothing ? 0.f : rows.acc[d][r * 2 + 1] * inverse);
    if (p.lse != nullptr && lane % 4 == 0)
      p.lse[(x.b * p.nodes + n) * p.heads + h] = nothing ? -INFINITY : rows.top[r] * kLn2 + logf(rows.sum[r]);
  }
}

// Waits until the oldest of this thread's `open` + 1 newest groups has landed.
__device__ __forceinline__ void wait_for(int open) {
  if (open <= 1)
    ptx::cp_async_wait<1>();
  else if (open == 2)
    ptx::cp_async_wait<2>();
  else
    ptx::cp_async_wait<3>();
}

// What this lane's two rows see of tile t, which is not a full prefix tile.
template <class T, int D, class F>
__device__ __forceinline__ void read_words(const SplitBlock<T, D, F>& x, int t, uint64_t (&word)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x / 32 / F::kKeyWarps * 16 + threadIdx.x % 32 / 4 + r * 8, n = (x.row0 + row) / x.group;
    if (t < x.prefix_tiles)
      word[r] = Work::below((x.end - x.begin) % kTileKeys, 0);
    else
      word[r] = n < x.w.used ? x.w.word(x.p, x.b, n, t - x.prefix_tiles) : 0;
  }
}

template <bool kDraft, class T, int D, class F>
__global__ void __launch_bounds__(F::kWarps * 32, attention_blocks(F::kWarps))
    attention_mma_kernel(const __grid_constant__ DraftAttentionParams p, int stages) {
  await_previous_kernel();
  using Tile = AttentionTile<T, D, F>;
  SMEM_DYNAMIC(raw);
  const SplitBlock<T, D, F> x(p, raw, stages);
  report_lengths(x.p, x.b);
  if (x.split > x.w.last) return;
  const bool zeros = x.p.splits == 1 && x.p.zero_unused;
  if (x.row0 >= x.w.used * x.group && !zeros) return;

  if constexpr (!kDraft) load_queries<kDraft>(x);
  ptx::cp_async_commit();
  for (int t = 0; t < stages - 1; ++t) {
    if (t < x.tiles) load_tile<kDraft>(x, t, t);
    ptx::cp_async_commit();
  }
  if constexpr (kDraft) load_queries<kDraft>(x);  // waits for its loads: the tiles are under way
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 / F::kKeyWarps * 16;
  WarpRows<D> rows;
  wait_for(stages - 1);
  __syncthreads();
#pragma unroll
  for (int ks = 0; ks < D / 16; ++ks)
    ptx::ldmatrix_x4(rows.q[ks], Tile::at(x.s.q, warp_row + lane % 16, ks * 2 + lane / 16));

  const float scale = x.p.scale * kLog2E;
  // Tile t has landed for everybody, and everybody has left the stage of tile t - 1: fill it. Returns tile t's stage.
  int at = stages - 1;  // of tile t - 1
  const auto next = [&](int t) {
    if (stages == 2)
      ptx::cp_async_wait<0>();
    else
      wait_for(stages - 2);
    __syncthreads();
    if (t + stages - 1 < x.tiles) load_tile<kDraft>(x, t + stages - 1, at);
    ptx::cp_async_commit();
    return at = at + 1 == stages ? 0 : at + 1;
  };
  const bool busy = x.row0 + warp_row < x.w.used * x.group;  // else this warp only loads
  uint64_t word[2] = {0, 0};
  const int full = (x.end - x.begin) / kTileKeys;
  T* const scratch = x.s.q + warp_row * Tile::kPitch;  // the queries are in registers
  for (int t = 0; t < full; ++t) {
    const int stage = next(t);
    T *sk = x.s.k + stage * Tile::kStage, *sv = x.s.v + stage * Tile::kStage;
    if (busy) attend<false, F, Tile, D>(rows, sk, sv, word, scale, false, scratch);
  }
  for (int t = full; t < x.tiles; ++t) {
    const int stage = next(t);
    T *sk = x.s.k + stage * Tile::kStage, *sv = x.s.v + stage * Tile::kStage;
    read_words(x, t, word);
    const bool by_key = t >= x.prefix_tiles && any_not_finite<Tile>(sv);
    if (busy) attend<true, F, Tile, D>(rows, sk, sv, word, scale, by_key, scratch);
  }
  ptx::cp_async_wait<0>();
  if constexpr (F::kKeyWarps > 1) {
    merge_key_warps<F, Tile, D>(rows, x.s.k, x.s.v);
    if (threadIdx.x >= 32) return;
  }
  store_rows(x, rows);
}

template <bool kDraft, class T, int D, class F>
cudaError_t launch_mma(const DraftAttentionParams& d, int64_t shared_limit, cudaStream_t stream) {
  using Tile = AttentionTile<T, D, F>;
  const TreeAttentionParams& p = d.attention;
  const int64_t row_bytes = Tile::kPitch * static_cast<int64_t>(sizeof(T));
  const int stages =
      attention_stages(Tile::kRows * row_bytes, 2 * kTileKeys * row_bytes, attention_blocks(F::kWarps), shared_limit);
  const int64_t row_tiles = (p.nodes * (p.heads / p.kv_heads) + Tile::kRows - 1) / Tile::kRows;
  const dim3 grid(static_cast<unsigned>(row_tiles * p.splits), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  return SPARROW_LAUNCH((attention_mma_kernel<kDraft, T, D, F>), grid, dim3(Tile::kThreads),
                        Tile(nullptr, stages).bytes, stream, d, stages);
}

template <bool kDraft, class T, int D>
cudaError_t launch_mma_family(const DraftAttentionParams& d, int64_t shared_limit, cudaStream_t stream) {
  const TreeAttentionParams& p = d.attention;
  switch (attention_family(p.nodes * (p.heads / p.kv_heads), p.split_keys > 0)) {
    case AttentionFamily::few_rows: return launch_mma<kDraft, T, D, Family<1, 4>>(d, shared_limit, stream);
    case AttentionFamily::rows64: return launch_mma<kDraft, T, D, Family<4, 1>>(d, shared_limit, stream);
    default: return launch_mma<kDraft, T, D, Family<8, 1>>(d, shared_limit, stream);
  }
}

template <bool kDraft, class T>
cudaError_t launch_mma_dim(const DraftAttentionParams& d, int64_t shared_limit, cudaStream_t stream) {
  const int64_t dim = d.attention.dim;
  if (dim <= 64) return launch_mma_family<kDraft, T, 64>(d, shared_limit, stream);
  if (dim <= 80) return launch_mma_family<kDraft, T, 80>(d, shared_limit, stream);
  return launch_mma_family<kDraft, T, 128>(d, shared_limit, stream);
}

template <bool kDraft>
cudaError_t launch_mma_type(const DraftAttentionParams& d, int64_t shared_limit, cudaStream_t stream) {
  if (d.attention.dtype == DType::bf16) return launch_mma_dim<kDraft, __nv_bfloat16>(d, shared_limit, stream);
  return launch_mma_dim<kDraft, __half>(d, shared_limit, stream);
}

}  // namespace sparrow
