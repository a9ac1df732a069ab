// tree_mask: ancestor words and depths by pointer jumping.
//   One warp per tree, kMaxNodes / 32 nodes per lane. State per node in shared memory: its words, its depth and a
//   pointer `up` to the nearest ancestor not yet folded in. A round folds the pointed-to node's words into ours and
//   doubles the pointer; 7 rounds cover any path of 128 nodes. Reads and writes of a round are apart (two __syncwarp),
//   so every lane sees the round before.
#include "kernels/tree_mask.cuh"

#include "kernels/portable.cuh"

namespace sparrow {
namespace {

constexpr int kWords = kMaxNodes / kWordBits, kPerLane = kMaxNodes / 32, kRounds = 7;

__global__ void tree_mask_kernel(TreeMaskParams p) {
  SMEM_ARRAY(uint64_t, anc, kMaxNodes* kWords);
  SMEM_ARRAY(int, depth, kMaxNodes);
  SMEM_ARRAY(int, up, kMaxNodes);
  const int n = static_cast<int>(p.nodes), words = words_for(n), lane = threadIdx.x;
  const int64_t tree = blockIdx.x;
  for (int i = lane; i < n; i += 32) {
    const int parent = p.parent[tree * n + i];
    const bool ok = parent >= 0 && parent < i;  // anything else is a root
    up[i] = ok ? parent : -1;
    depth[i] = ok ? 1 : 0;
    for (int w = 0; w < kWords; ++w) anc[i * kWords + w] = i / kWordBits == w ? uint64_t{1} << (i % kWordBits) : 0;
  }
  __syncwarp();
  for (int round = 0; round < kRounds; ++round) {
    uint64_t more[kPerLane][kWords];
    int add[kPerLane], next[kPerLane];
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int i = lane + 32 * k, u = i < n ? up[i] : -1;
      for (int w = 0; w < kWords; ++w) more[k][w] = u >= 0 ? anc[u * kWords + w] : 0;
      add[k] = u >= 0 ? depth[u] : 0;
      next[k] = u >= 0 ? up[u] : -1;
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int i = lane + 32 * k;
      if (i >= n) continue;
      for (int w = 0; w < kWords; ++w) anc[i * kWords + w] |= more[k][w];
      depth[i] += add[k];
      up[i] = next[k];
    }
    __syncwarp();
  }
  uint64_t* out = reinterpret_cast<uint64_t*>(p.anc) + tree * n * words;
  for (int i = lane; i < n; i += 32) {
    for (int w = 0; w < words; ++w) out[i * words + w] = anc[i * kWords + w];
    p.depth[tree * n + i] = depth[i];
  }
}

}  // namespace

cudaError_t tree_mask_cuda(const TreeMaskParams& p, cudaStream_t stream) {
  if (p.batch == 0 || p.nodes == 0) return cudaSuccess;
  return SPARROW_LAUNCH(tree_mask_kernel, dim3(static_cast<unsigned>(p.batch)), dim3(32), 0, stream, p);
}

}  // namespace sparrow
