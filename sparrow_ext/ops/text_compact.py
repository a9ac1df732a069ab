"""text_compact: the positions of a sequence's text rows, in order."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def text_compact(is_text: Tensor, seq_lens: Tensor, max_text: int) -> tuple[Tensor, Tensor]:
    """Lists the text rows of each sequence.

    Args:
        is_text: bool [B, S], dense in its last dimension.
        seq_lens: int32 [B] in [0, S]; rows beyond are ignored.
        max_text: rows to make room for.

    Returns:
        index: int32 [B, max_text], the positions s < seq_lens[b] with is_text[b, s], ascending, padded with -1.
        count: int32 [B], how many there are.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; on the CPU also a length outside [0, S] and more text rows
            than max_text.

    Example:
        >>> is_text = torch.tensor([[True, False, False, True, True]])
        >>> text_compact(is_text, torch.tensor([4], dtype=torch.int32), 3)
        (tensor([[ 0,  3, -1]], dtype=torch.int32), tensor([2], dtype=torch.int32))
    """
    require_backend("text_compact", is_text)
    return torch.ops.sparrow.text_compact(is_text, seq_lens, max_text)


@fake_kernel("text_compact")
def _fake(is_text: Tensor, seq_lens: Tensor, max_text: int) -> tuple[Tensor, Tensor]:
    b = is_text.shape[0]
    return is_text.new_empty((b, max_text), dtype=torch.int32), is_text.new_empty((b,), dtype=torch.int32)


def reference(is_text: Tensor, seq_lens: Tensor, max_text: int) -> tuple[Tensor, Tensor]:
    """The definition, row by row."""
    rows = [[s for s in range(int(n)) if bool(row[s])] for row, n in zip(is_text, seq_lens, strict=True)]
    padded = [row + [-1] * (max_text - len(row)) for row in rows]
    index = torch.tensor(padded, dtype=torch.int32, device=is_text.device).view(len(rows), max_text)
    return index, torch.tensor([len(row) for row in rows], dtype=torch.int32, device=is_text.device)


def eager(is_text: Tensor, seq_lens: Tensor, max_text: int) -> tuple[Tensor, Tensor]:
    """What a user would write: nonzero, sequence by sequence."""
    index = torch.full((is_text.shape[0], max_text), -1, dtype=torch.int32, device=is_text.device)
    counts = []
    for b, length in enumerate(seq_lens.tolist()):
        rows = is_text[b, :length].nonzero().squeeze(1)
        index[b, : rows.shape[0]] = rows
        counts.append(rows.shape[0])
    return index, torch.tensor(counts, dtype=torch.int32, device=is_text.device)
