// What the bindings call on a GPU: a launcher per operator, in <op>.cu (draft_attention's and tree_attention's kernels
// are in attention.cu and attention_mma.cuh). Each returns the launches' error; its grid follows from the shapes alone,
// and empty work launches nothing. Bad values never reach memory: what becomes of them is said here.
#pragma once
#include <cuda_runtime_api.h>

#include "ops/add_rms_norm.h"
#include "ops/argmax_rows.h"
#include "ops/draft_attention.h"
#include "ops/gather_rows.h"
#include "ops/gumbel_noise.h"
#include "ops/hsr_project.h"
#include "ops/kv_commit.h"
#include "ops/lm_head_topk.h"
#include "ops/repetition_penalty.h"
#include "ops/rope_append.h"
#include "ops/sample_rows.h"
#include "ops/silu_mul.h"
#include "ops/skinny_linear.h"
#include "ops/text_compact.h"
#include "ops/topk_lse.h"
#include "ops/tree_accept.h"
#include "ops/tree_expand.h"
#include "ops/tree_mask.h"
#include "ops/tree_rerank.h"

namespace sparrow {

cudaError_t add_rms_norm_cuda(const AddRmsNormParams& p, cudaStream_t stream);
cudaError_t silu_mul_cuda(const SiluMulParams& p, cudaStream_t stream);

// partial: scratch, rows * argmax_chunks(V) integers.
cudaError_t argmax_rows_cuda(const ArgmaxRowsParams& p, uint64_t* partial, cudaStream_t stream);

// p.split_keys: the caller's split size, 0 = our own; p.splits: attention_grid_splits of p.max_prefix.
// shared_limit: bytes of shared memory a block may have on this device.
cudaError_t tree_attention_cuda(const TreeAttentionParams& p, int64_t shared_limit, cudaStream_t stream);
// The same. On matrix units one launch ropes, appends and attends, a second one combines the splits where there are
// several; else two or three launches with the roped queries in p.roped.
cudaError_t draft_attention_cuda(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream);

// Counts are clamped to [0, I] (kBadCount); an entry outside src or a target outside dst is skipped (kBadIndex).
cudaError_t gather_rows_cuda(const GatherRowsParams& p, cudaStream_t stream);

// V <= 65535 * 512.
cudaError_t gumbel_noise_cuda(const GumbelNoiseParams& p, cudaStream_t stream);

// M <= kSkinnyRows in bf16 and fp16 (p.partial is used), any M in float32. A row's bits do not depend on M. Rows whose
// index lies outside its table take zeros for that half (kBadIndex); num_rows is clamped to [0, M] (kBadCount).
cudaError_t hsr_project_cuda(const HsrProjectParams& p, cudaStream_t stream);
// For the library's GEMM, bf16 and fp16: rows [begin, begin + count) gathered into x [count, E + H], dense, ...
cudaError_t hsr_gather_cuda(const HsrProjectParams& p, int64_t begin, int64_t count, void* x, cudaStream_t stream);
// ... and its products y [count, O], dense, copied into the valid rows of out.
cudaError_t hsr_scatter_cuda(const HsrProjectParams& p, int64_t begin, int64_t count, const void* y,
                             cudaStream_t stream);

// One launch for all key and value tensors of p, sequences and lengths. A path entry that would read outside the cache
// or below its own row is skipped (kBadIndex); counts are clamped to [0, P], new lengths to [0, S] (kBadCount).
cudaError_t kv_commit_cuda(const KvCommitParams& p, cudaStream_t stream);

// Top-k and log-sum-exp: partial results of [rows, lists] hold stat (maximum, sum of exp(x - maximum)) and k keys
// (value, index), descending, 0 = unused. A key holds its index, so keys are distinct and their order is the
// operator's: value descending, index ascending, NaN = -inf. Selecting by key is exact in whatever order entries come.
// The keys take the room of TopkPartials' values and indices: 8 bytes each, 8-byte aligned.
constexpr int64_t kTopkLists = 1024;  // lists per row that the merge takes: their heads live in 8 KB of shared memory
static_assert(kLmHeadLists <= kTopkLists && kTopkCudaLists <= kTopkLists, "the merge's limit");
inline uint64_t* topk_keys(const TopkPartials& parts) { return reinterpret_cast<uint64_t*>(parts.value); }
// Merges the partial results of `rows` rows; parts.chunks <= kTopkLists.
cudaError_t topk_merge_cuda(const TopkMergeParams& p, int64_t rows, cudaStream_t stream);
// Fills p.parts, parts.chunks = topk_cuda_lists(V); topk_merge_cuda finishes.
cudaError_t topk_lse_cuda(const TopkLseParams& p, int64_t rows, cudaStream_t stream);
// bf16 and fp16: the partial results of rows [first, first + rows) of h, rows <= kSkinnyRows; p.parts.chunks =
// lm_head_lists(V), entry (m, list) = m * chunks + list. p.packed is not used. topk_merge_cuda finishes.
cudaError_t lm_head_topk_cuda(const LmHeadTopkParams& p, cudaStream_t stream);
// float32: the logits [rows, V] of those rows, dense.
cudaError_t lm_head_logits_cuda(const LmHeadTopkParams& p, float* logits, cudaStream_t stream);

// Tokens outside [0, V) are ignored.
cudaError_t repetition_penalty_cuda(const RepetitionPenaltyParams& p, cudaStream_t stream);

// A slot outside the cache appends nothing.
cudaError_t rope_append_cuda(const RopeAppendParams& p, cudaStream_t stream);

// scratch: sample_rows_workspace_bytes, 8-byte aligned; p.block_max is not used. A temperature that is neither 0 nor in
// [kMinTemperature, inf] counts as 0, a negative top_k or a top_p that is NaN as off, a negative top_p as 0.
cudaError_t sample_rows_cuda(const SampleRowsParams& p, void* scratch, cudaStream_t stream);

// Any M: in bf16 and fp16 kSkinnyRows rows at a time, which p.partial is for. One launch for all weights of p, in 16
// bits a second one where the splits go through p.partial (skinny_whole).
cudaError_t skinny_linear_cuda(const SkinnyLinearParams& p, cudaStream_t stream);

// Lengths are clamped to [0, S]; rows beyond max_text are counted, not written: the caller compares count with
// max_text.
cudaError_t text_compact_cuda(const TextCompactParams& p, cudaStream_t stream);

// Counts are clamped to [0, N] (kBadCount); a node whose parent is not below it is never accepted (kBadParent).
cudaError_t tree_accept_cuda(const TreeAcceptParams& p, cudaStream_t stream);
// beam_index is copied to the history as it comes (tree_rerank drops entries with a bad one) and sets kBadParent.
cudaError_t tree_expand_cuda(const TreeExpandParams& p, cudaStream_t stream);
// A bad parent makes the node a root that sees itself only, and sets kBadParent.
cudaError_t tree_mask_cuda(const TreeMaskParams& p, cudaStream_t stream);
// p.scratch holds [B, C]. An entry whose parent does not lie in [-1, i) is never kept (kBadParent).
cudaError_t tree_rerank_cuda(const TreeRerankParams& p, cudaStream_t stream);

}  // namespace sparrow
