// The split kernel on matrix units (mma.sync m16n8k16), for 16-bit elements and head_dim <= 128.
//   Each warp owns 16 rows, or 32: their queries as mma fragments, their output as fp32 accumulators. K and V tiles of
//   64 keys go through a ring of stages in shared memory, filled by cp.async one iteration after the other warps have
//   left the stage (one barrier a tile). Rows in shared memory are cut into chunks of 16 bytes, placed so that the
//   eight rows of an ldmatrix phase fall into different banks: chunk ^ row where rows are a multiple of 128 bytes,
//   else an odd pitch.
//   Full prefix tiles are not masked; the ragged last one and the tree tiles have a 64-bit word per row.
//   head_dim is padded to D with zeros in shared memory.
//   16 rows or fewer: four warps hold the same rows and take 16 keys of each tile; they are merged at the end.
//   32 rows a warp: many rows are bound by reads of K and V from shared memory; here a fragment read serves two
//   fragments of rows. Queries are read again for each tile: 80 ldmatrix for a tile and 32 rows of 128 columns, not
//   128. A row is summed in the order it has with 16 rows a warp, so its bits are the same.
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

// How the warps of a block share a tile of rows x 64 keys; a warp's rows are kFragments operands of mma.
template <int kRowWarps_, int kKeyWarps_, int kFragments_>
struct Family {
  static constexpr int kRowWarps = kRowWarps_, kKeyWarps = kKeyWarps_;  // warp = row warp * kKeyWarps + key warp
  static constexpr int kFragments = kFragments_, kWarpRows = 16 * kFragments, kRows = kRowWarps * kWarpRows;
  static constexpr int kWarps = kRowWarps * kKeyWarps, kKeys = kTileKeys / kKeyWarps;
  // Accumulators and scores of two fragments are 192 registers at D = 128. What a thread can read again is then not
  // held: queries, BlockWork, tops and sums come from shared memory and masks from global memory where they are needed,
  // and full tiles have no code of their own.
  static constexpr bool kTight = kFragments > 1;
  // This warp's first row in the block.
  __device__ static __forceinline__ int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / kKeyWarps * kWarpRows;
  }
};

// What a block has to do: rows from row0 on; tiles [0, prefix_tiles) of prefix keys [begin, end), then the tree's. Of a
// split beyond the last these mean nothing.
struct BlockWork : Work {
  int group, row0, split, begin, end, prefix_tiles, tiles;
  __device__ __forceinline__ BlockWork(const TreeAttentionParams& p, int rows) : Work(p, static_cast<int>(blockIdx.z)) {
    group = static_cast<int>(p.heads / p.kv_heads);
    const int row_tiles = (static_cast<int>(p.nodes) * group + rows - 1) / rows;
    row0 = static_cast<int>(blockIdx.x) % row_tiles * rows;
    split = static_cast<int>(blockIdx.x) / row_tiles;
    begin = split * split_keys;
    end = min(begin + split_keys, text);
    prefix_tiles = (end - begin + kTileKeys - 1) / kTileKeys;
    tiles = prefix_tiles + (split == last ? (slots + kTileKeys - 1) / kTileKeys : 0);
  }
};

template <class T, int D, class F>
struct AttentionTile {
  static constexpr int kThreads = F::kWarps * 32, kRows = F::kRows, kChunks = D / 8;
  static constexpr int kStats = F::kTight ? F::kFragments * kThreads : 0;
  static constexpr bool kSwizzled = kChunks % 8 == 0;
  static constexpr int kPitch = (kSwizzled ? kChunks : kChunks | 1) * 8;  // elements
  static constexpr int kStage = kTileKeys * kPitch;
  static constexpr int64_t kRowBytes = kPitch * static_cast<int64_t>(sizeof(T));
  static_assert(!F::kTight || (sizeof(BlockWork) <= 128 && 128 + sizeof(float4) * kStats == kTightBytes));
  BlockWork* work;  // these two: F::kTight
  float4* stats;    // [kFragments][kThreads]: RowSums' top and sum
  T *q, *k, *v;
  size_t bytes;
  __host__ __device__ AttentionTile(unsigned char* base, int stages) {
    SmemCarver c{base};
    work = c.take<BlockWork>(F::kTight ? 1 : 0);
    stats = c.take<float4>(kStats);
    q = c.take<T>(kRows * kPitch);
    k = c.take<T>(static_cast<size_t>(stages) * kStage);
    v = c.take<T>(static_cast<size_t>(stages) * kStage);
    bytes = c.at;
  }
  // Chunk c of row r.
  __device__ static __forceinline__ T* at(T* tile, int r, int c) {
    return tile + r * kPitch + (kSwizzled ? c ^ (r & 7) : c) * 8;
  }
  // Chunk c + 2 step, from where chunk c (0 or 1) of the same row lies. Swizzled rows start at multiples of 128 bytes,
  // so the place of one step is another's by exclusive or with a constant: no register for each.
  __device__ static __forceinline__ T* ahead(T* chunk, int step) {
    if constexpr (!kSwizzled) return chunk + step * 16;
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(chunk) ^ (step % 4 * 32)) + step / 4 * 64;
  }
};

// What a warp sums for 16 rows, a fragment of mma. A lane holds rows lane / 4 and lane / 4 + 8.
template <int D>
struct RowSums {
  float acc[D / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
};

// What a warp knows of its rows; where registers are tight, q is one step's.
template <int D, class F>
struct WarpRows {
  uint32_t q[F::kTight ? 1 : D / 16][F::kFragments][4];
  RowSums<D> part[F::kFragments];
};

// Block-wide constants.
template <class T, int D, class F>
struct SplitBlock {
  using Tile = AttentionTile<T, D, F>;
  const DraftAttentionParams& d;
  const TreeAttentionParams& p;
  const Tile s;
  const int stages, b, head;
  const BlockWork& w;

  __device__ __forceinline__ SplitBlock(const DraftAttentionParams& params, unsigned char* raw, int stage_count,
                                        const BlockWork& own)
      : d(params),
        p(params.attention),
        s(raw, stage_count),
        stages(stage_count),
        b(static_cast<int>(blockIdx.z)),
        head(static_cast<int>(blockIdx.y)),
        w(kept(own, s.work)) {}
  // Where the block's work is read from. The whole block must come here.
  __device__ static __forceinline__ const BlockWork& kept(const BlockWork& own, [[maybe_unused]] BlockWork* shared) {
    if constexpr (F::kTight) {
      if (threadIdx.x == 0) *shared = own;
      __syncthreads();
      return *shared;
    } else {
      return own;
    }
  }
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
  const int rows = x.w.used * x.w.group, dim = x.dim();
  for (int i = threadIdx.x; i < Tile::kRows * Tile::kChunks; i += Tile::kThreads) {
    const int r = i / Tile::kChunks, c = i % Tile::kChunks, row = x.w.row0 + r;
    const bool ok = row < rows && c * 8 < dim;
    const int n = row / x.w.group, h = x.head * x.w.group + row % x.w.group;
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
  const bool owner = x.w.row0 == 0;
  for (int i = ptx::fresh(threadIdx.x); i < (to - from) * Tile::kChunks; i += Tile::kThreads) {
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
  const int thread = ptx::fresh(threadIdx.x), r = thread / Tile::kChunks, c = thread % Tile::kChunks;
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
  const bool tree = t >= x.w.prefix_tiles;
  const int first = tree ? (t - x.w.prefix_tiles) * kTileKeys : x.w.begin + t * kTileKeys;
  const int limit = tree ? x.w.slots : x.w.end;
  if constexpr (Tile::kThreads % Tile::kChunks == 0)
    if (!tree && first + kTileKeys <= limit && dim == D && (first >= x.w.cut || first + kTileKeys <= x.w.cut))
      return load_full_tile(x, first, sk, sv);
  const int fresh = kDraft && tree ? min(x.w.start, limit) : limit;  // slots from here on come from qkv
#pragma unroll 4
  for (int i = ptx::fresh(threadIdx.x); i < kTileKeys * Tile::kChunks; i += Tile::kThreads) {
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

// Scores of the warp's keys to weights 2^(s - top), with the running top and sum; rescales what was summed before.
// masked: bit n*8 + i of a row's word (already shifted by the lane's column): this lane's column i of n-tile n is seen.
template <int D, int kKeys>
__device__ __forceinline__ void softmax_tile(RowSums<D>& rows, float (&score)[kKeys / 8][4], bool masked,
                                             const uint64_t (&word)[2], float scale) {
  float high[2] = {rows.top[0], rows.top[1]};
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) score[n][i] *= scale;
  if (masked)
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (((word[i / 2] >> (n * 8 + i % 2)) & 1) == 0) score[n][i] = -INFINITY;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) high[i / 2] = fmaxf(high[i / 2], score[n][i]);  // NaN is passed over
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

// Weights as mma fragments, of 16 keys each.
template <class T, int kKeys>
__device__ __forceinline__ void pack_weights(uint32_t (&weight)[kKeys / 16][4], const float (&score)[kKeys / 8][4]) {
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r) weight[n / 2][n % 2 * 2 + r] = ptx::pack2<T>(score[n][r * 2], score[n][r * 2 + 1]);
}

// acc += weights values, of the keys each row sees, one by one. Of the four lanes that share a row each holds the
// weights of its own columns and hands them to the others. Uses the weights up: those at hand are always the first
// ones, because registers take no index.
template <class T, int D, class F>
__device__ __forceinline__ void add_seen_values(const SplitBlock<T, D, F>& x, RowSums<D>& rows, int stage, int key0,
                                                uint32_t (&weight)[F::kKeys / 16][4], const uint64_t (&word)[2]) {
  using Tile = AttentionTile<T, D, F>;
  const int lane = threadIdx.x % 32;
  T* const sv = x.s.v + stage * Tile::kStage;
#pragma unroll 1
  for (int key = key0; key < key0 + F::kKeys; ++key) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = __shfl_sync(0xffffffffu, weight[0][r], lane / 4 * 4 + key % 8 / 2);
      if ((word[r] >> key & 1) == 0) continue;
      const float share = ptx::unpack<T>(pair, key % 2);
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float v = static_cast<float>(Tile::at(sv, key, d)[lane % 4 * 2 + i]);
          rows.acc[d][r * 2 + i] = fmaf(share, v, rows.acc[d][r * 2 + i]);
        }
    }
    if (key % 8 != 7) continue;
#pragma unroll
    for (int i = 2; i < F::kKeys / 4; ++i) weight[(i - 2) / 4][(i - 2) % 4] = weight[i / 4][i % 4];
  }
}

// What this lane's rows of fragment f see of tile t.
template <class T, int D, class F>
__device__ __forceinline__ void read_words(const SplitBlock<T, D, F>& x, int t, int f, uint64_t (&word)[2]) {
  const int first = x.w.row0 + ptx::fresh(F::warp_row() + f * 16 + threadIdx.x % 32 / 4);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int n = (first + r * 8) / x.w.group;
    if (t < x.w.prefix_tiles)
      word[r] = Work::below(x.w.end - x.w.begin, t);
    else
      word[r] = n < x.w.used ? x.w.word(x.p, x.b, n, t - x.w.prefix_tiles) : 0;
  }
}

// Where this lane reads the warp's queries.
template <class T, int D, class F>
__device__ __forceinline__ T* query_place(const SplitBlock<T, D, F>& x) {
  const int lane = ptx::fresh(threadIdx.x % 32);
  return AttentionTile<T, D, F>::at(x.s.q, F::warp_row() + lane % 16, lane / 16);
}

// Columns 16 ks .. 16 ks + 15 of the warp's queries.
template <class F, class Tile, class T>
__device__ __forceinline__ void read_queries(uint32_t (&q)[F::kFragments][4], T* place, int ks) {
#pragma unroll
  for (int f = 0; f < F::kFragments; ++f) ptx::ldmatrix_x4(q[f], Tile::ahead(place + f * 16 * Tile::kPitch, ks));
}

// Scores of the warp's keys, from key0 of the tile on. Each fragment of K serves all the warp's rows.
template <class T, int D, class F>
__device__ __forceinline__ void score_tile(const SplitBlock<T, D, F>& x, WarpRows<D, F>& rows, int stage, int key0,
                                           float (&score)[F::kFragments][F::kKeys / 8][4]) {
  using Tile = AttentionTile<T, D, F>;
  constexpr int kAtATime = F::kTight ? 1 : D / 16;  // steps: ptxas reads ahead as far as they are unrolled
  const int lane = ptx::fresh(threadIdx.x % 32);
  T* const k = Tile::at(x.s.k + stage * Tile::kStage, key0 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  T* const q = F::kTight ? query_place(x) : nullptr;
#pragma unroll kAtATime
  for (int ks = 0; ks < D / 16; ++ks) {
    const int held = F::kTight ? 0 : ks;
    if constexpr (F::kTight) read_queries<F, Tile>(rows.q[0], q, ks);
#pragma unroll
    for (int n = 0; n < F::kKeys / 16; ++n) {
      uint32_t kf[4];
      ptx::ldmatrix_x4(kf, Tile::ahead(k + n * 16 * Tile::kPitch, ks));
#pragma unroll
      for (int f = 0; f < F::kFragments; ++f) {
        ptx::mma_m16n8k16<T>(score[f][2 * n], rows.q[held][f], kf[0], kf[1]);
        ptx::mma_m16n8k16<T>(score[f][2 * n + 1], rows.q[held][f], kf[2], kf[3]);
      }
    }
  }
}

// acc += weights values. Each fragment of V serves all the warp's rows.
template <class T, int D, class F>
__device__ __forceinline__ void add_values(const SplitBlock<T, D, F>& x, WarpRows<D, F>& rows, int stage, int key0,
                                           const uint32_t (&weight)[F::kFragments][F::kKeys / 16][4]) {
  using Tile = AttentionTile<T, D, F>;
  const int lane = ptx::fresh(threadIdx.x % 32);
  T* const v = Tile::at(x.s.v + stage * Tile::kStage, key0 + lane % 16, lane / 16);
#pragma unroll
  for (int j = 0; j < F::kKeys / 16; ++j)
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t vf[4];
      ptx::ldmatrix_x4_trans(vf, Tile::ahead(v + j * 16 * Tile::kPitch, d));
#pragma unroll
      for (int f = 0; f < F::kFragments; ++f) {
        ptx::mma_m16n8k16<T>(rows.part[f].acc[2 * d], weight[f][j], vf[0], vf[1]);
        ptx::mma_m16n8k16<T>(rows.part[f].acc[2 * d + 1], weight[f][j], vf[2], vf[3]);
      }
    }
}

// Top and sum of fragment f to and from shared memory, where registers are tight.
template <class T, int D, class F>
__device__ __forceinline__ void keep_stats([[maybe_unused]] const SplitBlock<T, D, F>& x,
                                           [[maybe_unused]] const WarpRows<D, F>& rows, [[maybe_unused]] int f) {
  if constexpr (F::kTight) {
    const RowSums<D>& part = rows.part[f];
    x.s.stats[f * F::kWarps * 32 + threadIdx.x] = make_float4(part.top[0], part.top[1], part.sum[0], part.sum[1]);
  }
}
template <class T, int D, class F>
__device__ __forceinline__ void take_stats([[maybe_unused]] const SplitBlock<T, D, F>& x,
                                           [[maybe_unused]] WarpRows<D, F>& rows, [[maybe_unused]] int f) {
  if constexpr (F::kTight) {
    const float4 kept = x.s.stats[f * F::kWarps * 32 + threadIdx.x];
    rows.part[f].top[0] = kept.x, rows.part[f].top[1] = kept.y;
    rows.part[f].sum[0] = kept.z, rows.part[f].sum[1] = kept.w;
  }
}

// Tile t. given: what the lane's rows see of it, if it is masked and registers are not tight; by_key: it holds values
// that are not finite.
template <bool kMasked, class T, int D, class F>
__device__ __forceinline__ void attend(const SplitBlock<T, D, F>& x, WarpRows<D, F>& rows, int t, int stage,
                                       const uint64_t (&given)[2], [[maybe_unused]] bool by_key) {
  constexpr int kKeys = F::kKeys;
  const int key0 = threadIdx.x / 32 % F::kKeyWarps * kKeys;
  float score[F::kFragments][kKeys / 8][4] = {};
  score_tile(x, rows, stage, key0, score);
  const bool masked = kMasked && (!F::kTight || (t + 1) * kTileKeys > x.w.end - x.w.begin);
  uint32_t weight[F::kFragments][kKeys / 16][4];
  const int shift = key0 + ptx::fresh(threadIdx.x % 4) * 2;
#pragma unroll
  for (int f = 0; f < F::kFragments; ++f) {
    uint64_t word[2] = {given[0], given[1]};
    if (F::kTight && masked) read_words(x, t, f, word);
    const uint64_t mine[2] = {word[0] >> shift, word[1] >> shift};
    take_stats(x, rows, f);
    softmax_tile<D, kKeys>(rows.part[f], score[f], masked, mine, x.p.scale * kLog2E);
    keep_stats(x, rows, f);
    pack_weights<T, kKeys>(weight[f], score[f]);
  }
  if constexpr (kMasked)
    if (by_key) {
#pragma unroll
      for (int f = 0; f < F::kFragments; ++f) {
        uint64_t word[2] = {given[0], given[1]};
        if constexpr (F::kTight) read_words(x, t, f, word);
        add_seen_values(x, rows.part[f], stage, key0, weight[f], word);
      }
      return;
    }
  add_values(x, rows, stage, key0, weight);
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
__device__ __forceinline__ void merge_key_warps(RowSums<D>& rows, void* keys_part, void* values_part) {
  static_assert(F::kRows == 16 && sizeof(float4) * F::kKeyWarps * D / 8 * 32 <= 2 * 2 * Tile::kStage);
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

// 16 rows from `first` of the block on, two neighbouring columns a lane; the result itself where the grid has one
// split, else the workspace.
template <class T, int D, class F>
__device__ __forceinline__ void store_rows(const SplitBlock<T, D, F>& x, RowSums<D>& rows, int first) {
  const TreeAttentionParams& p = x.p;
  const int lane = threadIdx.x % 32, dim = x.dim();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 1);
    rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 2);
    const int row = x.w.row0 + ptx::fresh(first + lane / 4) + r * 8, n = row / x.w.group;
    const bool used = n < x.w.used;
    if (n >= p.nodes || (!used && (p.splits > 1 || !p.zero_unused))) continue;
    if (p.splits > 1) {
      const int64_t slot = partial_row(p, x.b, x.w.split, x.head, row);
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
    const int64_t h = x.head * x.w.group + row % x.w.group;
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

template <bool kDraft, class T, int D, class F>
__global__ void __launch_bounds__(F::kWarps * 32, attention_blocks(F::kWarps))
    attention_mma_kernel(const __grid_constant__ DraftAttentionParams p, int stages) {
  await_previous_kernel();
  using Tile = AttentionTile<T, D, F>;
  SMEM_DYNAMIC(raw);
  const BlockWork own(p.attention, F::kRows);
  const SplitBlock<T, D, F> x(p, raw, stages, own);
  report_lengths(x.p, x.b);
  if (x.w.split > x.w.last) return;
  const bool zeros = x.p.splits == 1 && x.p.zero_unused;
  if (x.w.row0 >= x.w.used * x.w.group && !zeros) return;

  if constexpr (!kDraft) load_queries<kDraft>(x);
  ptx::cp_async_commit();
  for (int t = 0; t < stages - 1; ++t) {
    if (t < x.w.tiles) load_tile<kDraft>(x, t, t);
    ptx::cp_async_commit();
  }
  if constexpr (kDraft) load_queries<kDraft>(x);  // waits for its loads: the tiles are under way
  WarpRows<D, F> rows;
  wait_for(stages - 1);
  __syncthreads();
#pragma unroll
  for (int f = 0; f < F::kFragments; ++f) keep_stats(x, rows, f);
  if constexpr (!F::kTight) {
    T* const q = query_place(x);
#pragma unroll
    for (int ks = 0; ks < D / 16; ++ks) read_queries<F, Tile>(rows.q[ks], q, ks);
  }

  // Tile t has landed for everybody, and everybody has left the stage of tile t - 1: fill it. Returns tile t's stage.
  int at = stages - 1;  // of tile t - 1
  const auto next = [&](int t) {
    if (stages == 2)
      ptx::cp_async_wait<0>();
    else
      wait_for(stages - 2);
    __syncthreads();
    if (t + stages - 1 < x.w.tiles) load_tile<kDraft>(x, t + stages - 1, at);
    ptx::cp_async_commit();
    return at = at + 1 == stages ? 0 : at + 1;
  };
  const bool busy = x.w.row0 + F::warp_row() < x.w.used * x.w.group;  // else this warp only loads
  uint64_t word[2] = {0, 0};
  const int full = F::kTight ? 0 : (x.w.end - x.w.begin) / kTileKeys;
  for (int t = 0; t < full; ++t) {
    const int stage = next(t);
    if (busy) attend<false>(x, rows, t, stage, word, false);
  }
  for (int t = full; t < x.w.tiles; ++t) {
    const int stage = next(t);
    if constexpr (!F::kTight) read_words(x, t, 0, word);
    const bool by_key = t >= x.w.prefix_tiles && any_not_finite<Tile>(x.s.v + stage * Tile::kStage);
    if (busy) attend<true>(x, rows, t, stage, word, by_key);
  }
  ptx::cp_async_wait<0>();
  if constexpr (F::kKeyWarps > 1) {
    merge_key_warps<F, Tile>(rows.part[0], x.s.k, x.s.v);
    if (threadIdx.x >= 32) return;
  }
#pragma unroll
  for (int f = 0; f < F::kFragments; ++f) {
    take_stats(x, rows, f);
    store_rows(x, rows.part[f], F::warp_row() + f * 16);
  }
}

template <bool kDraft, class T, int D, class F>
cudaError_t launch_mma(const DraftAttentionParams& d, int64_t shared_limit, cudaStream_t stream) {
  using Tile = AttentionTile<T, D, F>;
  const TreeAttentionParams& p = d.attention;
  const int64_t fixed = Tile::kRows * Tile::kRowBytes + (F::kTight ? kTightBytes : 0);
  const int stages =
      attention_stages(fixed, 2 * kTileKeys * Tile::kRowBytes, attention_blocks(F::kWarps), shared_limit);
  const int64_t row_tiles = (p.nodes * (p.heads / p.kv_heads) + Tile::kRows - 1) / Tile::kRows;
  const dim3 grid(static_cast<unsigned>(row_tiles * p.splits), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  return SPARROW_LAUNCH((attention_mma_kernel<kDraft, T, D, F>), grid, dim3(Tile::kThreads),
                        Tile(nullptr, stages).bytes, stream, d, stages);
}

template <bool kDraft, class T, int D>
cudaError_t launch_mma_family(const DraftAttentionParams& d, int64_t shared_limit, cudaStream_t stream) {
  using Rows256 = Family<8, 1, 2>;
  const TreeAttentionParams& p = d.attention;
  const int64_t rows = p.nodes * (p.heads / p.kv_heads), row_bytes = AttentionTile<T, D, Rows256>::kRowBytes;
  switch (attention_family(rows, p.split_keys > 0, row_bytes, shared_limit)) {
    case AttentionFamily::few_rows: return launch_mma<kDraft, T, D, Family<1, 4, 1>>(d, shared_limit, stream);
    case AttentionFamily::rows64: return launch_mma<kDraft, T, D, Family<4, 1, 1>>(d, shared_limit, stream);
    case AttentionFamily::rows128: return launch_mma<kDraft, T, D, Family<8, 1, 1>>(d, shared_limit, stream);
    default: return launch_mma<kDraft, T, D, Rows256>(d, shared_limit, stream);
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
