#pragma once
#include <cuda_runtime_api.h>

#include "ops/repetition_penalty.h"

namespace sparrow {

// 128 threads x 16 flags x 4: a chat has seen few tokens, so a block is little else than reading its flags.
constexpr int64_t kPenaltyChunk = 8192;

// Tokens outside [0, V) are ignored.
cudaError_t repetition_penalty_cuda(const RepetitionPenaltyParams& p, cudaStream_t stream);

}  // namespace sparrow
