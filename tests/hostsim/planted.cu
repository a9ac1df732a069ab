// What the simulator is worth: one small kernel with everything that goes wrong in the real ones (cp.async ring, block
// barriers, ldmatrix, mma, tree mask, ragged end), and one defect planted into it at a time. The defects are template
// parameters, so one program holds all of them: `planted <name>` runs eight schedules and prints what became of each.
//   sum[row] = sum over the keys that row sees of Q[row] . K[key];  all keys but the last kTree, and of those the ones
//   whose bit is set in anc[row].  Small integers: exact in any order.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/ptx.cuh"
#if defined(HOSTSIM_RACE)
#include "hostsim_race.hpp"
#endif

using bf16 = __nv_bfloat16;
constexpr int kDim = 64, kPitch = kDim + 8;  // elements; 144-byte rows put the 8 rows of an ldmatrix in 8 bank groups
constexpr int kRows = 16, kTile = 32, kStages = 2, kWarps = 2, kTree = 8, kKeys = 72;  // the third tile is ragged

enum Plant { none, no_await, no_wait, late_wait, no_sync_ready, no_sync_reuse, no_sync_combine, divergent_sync,
             wrong_mask, no_bounds_check, shared_overrun, kPlants };
const char* const kNames[] = {"none", "no_await", "no_wait", "late_wait", "no_sync_ready", "no_sync_reuse",
                              "no_sync_combine", "divergent_sync", "wrong_mask", "no_bounds_check", "shared_overrun"};

template <Plant P>
__device__ void load_tile(bf16* stage, const bf16* k, int tile) {
  for (int unit = threadIdx.x; unit < kTile * kDim / 8; unit += blockDim.x) {
    const int row = unit / (kDim / 8), column = unit % (kDim / 8) * 8, key = tile * kTile + row;
    const bool valid = P == no_bounds_check || key < kKeys;
    ptx::cp_async16(stage + row * kPitch + column, k + key * kDim + column, valid);
  }
}

template <Plant P>
__device__ bool sees(uint64_t anc, int key) {
  const int node = key - (kKeys - kTree);
  return key < kKeys && (node < 0 || (anc >> (P == wrong_mask ? node + 1 : node) & 1));
}

template <Plant P>
__global__ void planted_kernel(const bf16* q, const bf16* k, const uint64_t* anc, float* sum) {
  if (P != no_await || threadIdx.x < 63) sparrow::await_previous_kernel();
  SMEM_DYNAMIC(raw);
  SmemCarver carve{raw};
  bf16* const sq = carve.take<bf16>(kRows * kPitch);
  bf16* const sk = carve.take<bf16>(kStages * kTile * kPitch);
  float* const part = carve.take<float>(kWarps * kRows);
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, tiles = (kKeys + kTile - 1) / kTile;
  for (int i = t; i < kRows * kDim; i += blockDim.x) sq[i / kDim * kPitch + i % kDim] = q[i];
  load_tile<P>(sk, k, 0);
  ptx::cp_async_commit();
  float total[2] = {0, 0};  // of rows lane / 4 and lane / 4 + 8
  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (P != no_sync_reuse) __syncthreads();  // everybody is done with the stage that is filled next
    if (tile + 1 < tiles) load_tile<P>(sk + (tile + 1) % kStages * kTile * kPitch, k, tile + 1);
    ptx::cp_async_commit();  // empty for the last tile, so that the wait below counts alike
    if constexpr (P != no_wait) ptx::cp_async_wait<P == late_wait ? 2 : 1>();
    if constexpr (P == divergent_sync) {
      if (warp == 0) __syncthreads();
    } else if constexpr (P != no_sync_ready) {
      __syncthreads();  // everybody's part of the tile is there
    }
    const bf16* stage = sk + tile % kStages * kTile * kPitch + warp * 16 * kPitch;  // a warp takes 16 keys
    float d[2][4] = {};
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[4], b[4];
      ptx::ldmatrix_x4(a, sq + lane % 16 * kPitch + step * 16 + lane / 16 * 8);
      ptx::ldmatrix_x4(b, stage + (lane % 8 + lane / 16 * 8) * kPitch + step * 16 + lane / 8 % 2 * 8);
      ptx::mma_m16n8k16<bf16>(d[0], a, b[0], b[1]);
      ptx::mma_m16n8k16<bf16>(d[1], a, b[2], b[3]);
    }
    for (int n = 0; n < 2; ++n)
      for (int i = 0; i < 4; ++i) {
        const int key = tile * kTile + warp * 16 + n * 8 + lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
        if (sees<P>(anc[row], key)) total[i / 2] += d[n][i];
      }
  }
  for (int h = 0; h < 2; ++h) {
    for (int distance = 1; distance < 4; distance *= 2) total[h] += __shfl_xor_sync(~0u, total[h], distance);
    if (lane % 4 == 0) part[warp * kRows + lane / 4 + h * 8] = total[h];
  }
  if (P == shared_overrun && t == 5) part[kWarps * kRows] = 1.f;
  if constexpr (P != no_sync_combine) __syncthreads();
  if (t < kRows) sum[t] = part[t] + part[kRows + t];
  ptx::cp_async_wait<0>();
}

struct Case {
  std::vector<bf16> q = std::vector<bf16>(kRows * kDim), k = std::vector<bf16>(kKeys * kDim);
  std::vector<uint64_t> anc = std::vector<uint64_t>(kRows);
  std::vector<float> want = std::vector<float>(kRows);
};

Case make_case() {
  Case c;
  for (int i = 0; i < kRows * kDim; ++i) c.q[i] = bf16(static_cast<float>(i * 7 % 5 - 2));
  for (int i = 0; i < kKeys * kDim; ++i) c.k[i] = bf16(static_cast<float>(i * 11 % 7 - 3));
  for (int row = 0; row < kRows; ++row) {
    c.anc[row] = 0x5Bu ^ (row * 0x1Du);
    for (int key = 0; key < kKeys; ++key)
      for (int i = 0; i < kDim && sees<none>(c.anc[row], key); ++i)
        c.want[row] += float(c.q[row * kDim + i]) * float(c.k[key * kDim + i]);
  }
  return c;
}

template <Plant P>
bool run(const char* name) {
  if (std::strcmp(name, kNames[P]) != 0) return false;
  const Case c = make_case();
  SmemCarver size{nullptr};
  size.take<bf16>(kRows * kPitch), size.take<bf16>(kStages * kTile * kPitch), size.take<float>(kWarps * kRows);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    hostsim::options.seed = seed;
    std::vector<float> sum(kRows, -1.f);
    std::string report;
    try {
      (void)SPARROW_LAUNCH((planted_kernel<P>), dim3(1), dim3(32 * kWarps), size.at, nullptr, c.q.data(), c.k.data(),
                           c.anc.data(), sum.data());
      report = sum == c.want ? "right" : "wrong values";
    } catch (const std::exception& e) {
      report = e.what();
    }
    std::printf("%s\n", report.c_str());
  }
  return true;
}

template <int... P>
bool run_any(const char* name, std::integer_sequence<int, P...>) {
  return (run<static_cast<Plant>(P)>(name) || ...);
}

int main(int, char** argv) {
  return argv[1] && run_any(argv[1], std::make_integer_sequence<int, kPlants>()) ? 0 : 2;
}
