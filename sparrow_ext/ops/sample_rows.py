"""sample_rows: one reproducible draw per row of logits, after temperature, top-k and top-p."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend

STREAM = 0  # the last word of the Philox counter; a drafter that draws with the target's noise has the same one


@operator
def sample_rows(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """Draws one token per row from softmax(logits / temperature), filtered by top-k, then top-p (Gumbel-max).

    The noise of a candidate depends on (seed, position, token id) only: the same row drawn in another batch slot, tree
    or round gives the same token, so speculative decoding emits exactly the tokens of plain decoding.

    Args:
        logits: float32, bfloat16 or float16 [B, N, V]; any row strides, last dimension dense.
        temperature: float32 [B]: 0 = argmax_rows of the row (nothing else applies), otherwise finite and >= 1e-30.
        seed: int64 [B], one per sequence (its 64 bits are the Philox4x32-10 key).
        position: int64 [B, N], the absolute position of the token to be drawn.
        top_k: int32 [B] or None; 0 = off. Keeps every token >= the k-th largest, so also its ties, as transformers.
        top_p: float32 [B] or None, in [0, 1]; 1 = off. Keeps the smallest set of most probable tokens whose
            probability, among what top-k kept, reaches top_p (at least one token); of equal tokens the lowest ids
            come first. Probabilities are float32.

    Returns:
        int64 [B, N]. Ties of the noisy scores go to the lowest id. NaN is never drawn (temperature > 0). A row with
        +inf gives its first +inf, a row with nothing but -inf and NaN gives its argmax_rows.

    Raises:
        RuntimeError: wrong dtype, shape, stride, device or value.

    Source: Gumbel-max: Maddison, Tarlow, Minka, "A* sampling" (arXiv 1411.0030), section 2; Philox: Salmon et al.,
        "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Example:
        >>> logits, seed, position = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([7]), torch.tensor([[12]])
        >>> sample_rows(logits, torch.tensor([0.0]), seed, position)
        tensor([[2]])
        >>> drawn = sample_rows(logits, torch.tensor([1.0]), seed, position)
        >>> bool((drawn == sample_rows(logits, torch.tensor([1.0]), seed, position)).all())
        True
    """
    require_backend("sample_rows", logits)
    return torch.ops.sparrow.sample_rows(logits, temperature, seed, position, top_k, top_p)


@fake_kernel("sample_rows")
def _fake(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.int64)


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Philox4x32-10 on int64 tensors that hold 32-bit words: four counter words, two key words -> four random words."""
    low = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        # The 64-bit product wraps into int64's sign bit; the mask after the arithmetic shift undoes that.
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32 & low) ^ c[1] ^ k[0], p1 & low, (p0 >> 32 & low) ^ c[3] ^ k[1], p0 & low]
        k = [k[0] + 0x9E3779B9 & low, k[1] + 0xBB67AE85 & low]
    return c


def gumbel(seed: Tensor, position: Tensor, vocab: int) -> Tensor:
    """The noise g [B, N, V] in float64: seed int64 [B], position int64 [B, N]."""
    low = 0xFFFFFFFF
    groups = torch.arange((vocab + 3) // 4, device=seed.device).expand(*position.shape, -1)
    at, sequence = position.unsqueeze(-1).expand_as(groups), seed[:, None, None].expand_as(groups)
    counter = [groups, at & low, at >> 32 & low, torch.full_like(groups, STREAM)]
    words = torch.stack(philox(counter, [sequence & low, sequence >> 32 & low]), -1).flatten(-2)[..., :vocab]
    u = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u))


def kept(logits: Tensor, temperature: Tensor, top_k: Tensor | None = None, top_p: Tensor | None = None) -> Tensor:
    """Bool [B, N, V]: what top-k, then top-p keep; temperature [B] > 0."""
    x = logits.double()
    x = torch.where(x.isnan(), -torch.inf, x)
    vocab = x.shape[-1]
    ordered, order = x.sort(dim=-1, descending=True, stable=True)  # stable: of equal tokens the lowest id comes first
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        k = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab).long()[:, None, None]
        keep &= ordered >= ordered.gather(-1, (k - 1).expand(*x.shape[:-1], 1))
    if top_p is not None:
        scores = ordered / temperature.double()[:, None, None]
        prob = torch.where(keep, scores, -torch.inf).softmax(-1)
        p = top_p.double()[:, None, None]
        nucleus = prob.cumsum(-1) - prob < p
        nucleus[..., 0] = True
        keep &= nucleus | (p >= 1)
    return torch.zeros_like(keep).scatter(-1, order, keep) & ~logits.isnan()


def noisy_scores(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """d + g in float64, -inf where dropped, for rows with a finite maximum and temperature > 0."""
    x = logits.double()
    top = torch.where(x.isnan(), -torch.inf, x).amax(-1, keepdim=True)
    scores = (x - top) / temperature.double()[:, None, None] + gumbel(seed, position, x.shape[-1])
    return torch.where(kept(logits, temperature, top_k, top_p), scores, -torch.inf)


def reference(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """The definition, in float64, with every score written out."""
    x = torch.where(logits.isnan(), -torch.inf, logits.double())
    top = x.amax(-1)
    warm = torch.where(temperature > 0, temperature, 1.0)
    drawn = noisy_scores(logits, warm, seed, position, top_k, top_p).argmax(-1)
    greedy = logits.argmax(-1)
    drawn = torch.where(top == torch.inf, (x == torch.inf).int().argmax(-1), drawn)
    return torch.where((temperature[:, None] == 0) | (top == -torch.inf), greedy, drawn)


def eager(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """What a user would write: the usual filters in float32, softmax, torch.multinomial (torch's own generator).

    One temperature > 0, top_k and top_p for the whole batch, taken from its first sequence. seed and position are not
    used: this draws from the same distribution, not the same tokens.
    """
    x = logits.float() / temperature[:, None, None]
    if top_k is not None and int(top_k[0]) > 0:
        kth = x.topk(min(int(top_k[0]), x.shape[-1]), dim=-1).values[..., -1:]
        x = x.masked_fill(x < kth, -torch.inf)
    if top_p is not None and float(top_p[0]) < 1:
        ordered, order = x.sort(dim=-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p[0]
        drop[..., -1] = False
        x = x.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return torch.multinomial(x.softmax(-1).flatten(0, 1), 1).view(x.shape[:-1])
