"""tree_expand: one level of the EAGLE-2 draft tree."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend

Beam = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@operator
def tree_expand(
    logp: Tensor,
    ids: Tensor,
    beam_score: Tensor,
    beam_index: Tensor,
    beam_anc: Tensor,
    level: int,
    beam: int,
    hist_score: Tensor,
    hist_id: Tensor,
    hist_parent: Tensor,
    error: Tensor | None = None,
) -> Beam:
    """Records the children of the beam in the history and chooses the next beam.

    Candidate c = t * k + j is token ids[b, t, j] below beam row t. Its score, the log-probability of its path, is
    min(beam_score[t], beam_score[t] + logp[t, j]), with NaN counted as -inf; its parent is beam_index[t].

    Args:
        logp: float32 [B, T, k], dense in its last dimension; T is 1 at level 0 and `beam` at later levels.
        ids: int64 [B, T, k], dense in its last dimension.
        beam_score: float32 [B, T], 0 at level 0; contiguous, as all of the following.
        beam_index: int32 [B, T], the beam rows' history indices; -1 at level 0, which stands for the tree's root.
        beam_anc: int64 [B, T, W], W <= 2, the draft cache slots each row sees; zero at level 0.
        level: 0 for the root's children.
        beam: rows of the next beam, at most T * k; its slots, up to (level + 1) * beam, fit into W words.
        hist_score: float32 [B, C]. Mutated, as the next two: all T * k candidates are written, in order, from slot 0 at
            level 0 and from slot k + (level - 1) * beam * k later. Fill it with -inf before level 0 where not all of C
            gets written.
        hist_id: int64 [B, C].
        hist_parent: int32 [B, C]. Fill it with -1 where not all of C gets written.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Returns:
        The best `beam` candidates by (score descending, candidate ascending); -inf ones fill up where there are fewer.
        token_ids: int64 [B, beam].
        row_index: int32 [B, beam], b * T + t: the candidate's row in the flattened drafter output.
        score: float32 [B, beam].
        index: int32 [B, beam], history index.
        anc: int64 [B, beam, W], beam_anc of row t and the candidate's own bit, level * beam + rank.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; level, beam, C or W that do not fit together; on the CPU
            also a beam_index outside [-1, the level's first slot). The CUDA kernel records it as it is and sets bit 1
            of `error`; tree_rerank never keeps its children.

    Source: EAGLE-2 (arXiv 2406.16858), section 4.1, the expansion phase.

    Example:
        >>> logp, ids = torch.tensor([[[-0.1, -2.0, -3.0]]]), torch.tensor([[[5, 6, 7]]])
        >>> score, root, anc = torch.zeros(1, 1), torch.full((1, 1), -1, dtype=torch.int32), torch.zeros(1, 1, 1).long()
        >>> history = torch.full((1, 3), -torch.inf), torch.zeros(1, 3).long(), torch.full((1, 3), -1).int()
        >>> tokens, rows, score, index, anc = tree_expand(logp, ids, score, root, anc, 0, 2, *history)
        >>> tokens, score, anc.flatten()
        (tensor([[5, 6]]), tensor([[-0.1000, -2.0000]]), tensor([1, 2]))
    """
    require_backend("tree_expand", logp)
    return torch.ops.sparrow.tree_expand(
        logp, ids, beam_score, beam_index, beam_anc, level, beam, hist_score, hist_id, hist_parent, error
    )


@fake_kernel("tree_expand")
def _fake(
    logp: Tensor,
    ids: Tensor,
    beam_score: Tensor,
    beam_index: Tensor,
    beam_anc: Tensor,
    level: int,
    beam: int,
    hist_score: Tensor,
    hist_id: Tensor,
    hist_parent: Tensor,
    error: Tensor | None = None,
) -> Beam:
    b, w = logp.shape[0], beam_anc.shape[2]
    return (
        ids.new_empty((b, beam)),
        ids.new_empty((b, beam), dtype=torch.int32),
        logp.new_empty((b, beam)),
        ids.new_empty((b, beam), dtype=torch.int32),
        ids.new_empty((b, beam, w)),
    )


def first_slot(k: int, level: int, beam: int) -> int:
    """The history slot of a level's first candidate."""
    return 0 if level == 0 else k + (level - 1) * beam * k


def reference(
    logp: Tensor,
    ids: Tensor,
    beam_score: Tensor,
    beam_index: Tensor,
    beam_anc: Tensor,
    level: int,
    beam: int,
    hist_score: Tensor,
    hist_id: Tensor,
    hist_parent: Tensor,
) -> Beam:
    """The definition, candidate by candidate."""
    b, t, k = logp.shape
    slot = first_slot(k, level, beam)
    tokens, score, anc = ids.new_empty(b, beam), logp.new_empty(b, beam), ids.new_empty(b, beam, beam_anc.shape[2])
    rows, index = beam_index.new_empty(b, beam), beam_index.new_empty(b, beam)
    for row in range(b):
        for c in range(t * k):
            up = beam_score[row, c // k]
            path = torch.minimum(up, up + logp[row, c // k, c % k])
            hist_score[row, slot + c] = -torch.inf if bool(path.isnan()) else path
            hist_id[row, slot + c] = ids[row, c // k, c % k]
            hist_parent[row, slot + c] = beam_index[row, c // k]
        candidates = hist_score[row, slot : slot + t * k].tolist()
        best = sorted(range(t * k), key=lambda c: (-candidates[c], c))[:beam]
        for rank, c in enumerate(best):
            own = level * beam + rank
            tokens[row, rank], score[row, rank] = ids[row, c // k, c % k], candidates[c]
            rows[row, rank], index[row, rank] = row * t + c // k, slot + c
            anc[row, rank] = beam_anc[row, c // k]
            anc[row, rank, own // 64] |= torch.tensor(1, device=ids.device) << own % 64
    return tokens, rows, score, index, anc


def eager(
    logp: Tensor,
    ids: Tensor,
    beam_score: Tensor,
    beam_index: Tensor,
    beam_anc: Tensor,
    level: int,
    beam: int,
    hist_score: Tensor,
    hist_id: Tensor,
    hist_parent: Tensor,
) -> Beam:
    """What a user would write: topk over all candidates, then gathers. topk returns ties in any order."""
    b, t, k = logp.shape
    slots = slice(first_slot(k, level, beam), first_slot(k, level, beam) + t * k)
    up = beam_score.unsqueeze(-1)
    candidates = torch.minimum(up, up + logp).nan_to_num_(-torch.inf, torch.inf, -torch.inf).flatten(1)
    hist_score[:, slots] = candidates
    hist_id[:, slots] = ids.flatten(1)
    hist_parent[:, slots] = beam_index.repeat_interleave(k, 1)
    score, best = candidates.topk(beam, dim=1)
    t_of = best // k
    own = torch.arange(level * beam, (level + 1) * beam, device=logp.device).unsqueeze(1)
    bits = torch.where(own // 64 == torch.arange(beam_anc.shape[2], device=logp.device), 1 << own % 64, 0)
    anc = beam_anc.gather(1, t_of.unsqueeze(-1).expand(-1, -1, beam_anc.shape[2])) | bits
    rows = t_of + torch.arange(b, device=logp.device).unsqueeze(1) * t
    return ids.flatten(1).gather(1, best), rows.int(), score, (best + slots.start).int(), anc
