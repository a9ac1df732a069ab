"""What ViSpec (arXiv 2509.15235) lets a drafter see of a video: one token and one vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Compressor(nn.Module):
    """Two learned queries over a visual block's projector embeddings, full multi-head attention without positions.

    The first query's answer is the block's one token, a row of the drafter where visual rows would be. The second's is
    the global vector g of all text behind the block, up to the next one: h becomes W [h; g] + b. W starts as the
    identity on h, so that an untrained g changes nothing.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, bias: bool):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.queries = nn.Parameter(torch.randn(2, num_heads, head_dim) * head_dim**-0.5)
        self.k_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.fusion = nn.Linear(2 * hidden_size, hidden_size)
        with torch.no_grad():
            self.fusion.weight.copy_(torch.eye(hidden_size, 2 * hidden_size))
            self.fusion.bias.zero_()

    def forward(self, states: Tensor, block: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Compresses every block.

        Args:
            states: [B, N, E], projector embeddings; rows outside blocks are not looked at.
            block: int64 [B, N], the block of each row, from 1; 0 = none.
            count: R, the most blocks of a sequence.

        Returns:
            tokens [B, R, E], any value where a sequence has fewer blocks, and global vectors [B, R + 1, E]: at r, that
            of text with r blocks before it (zero without one).
        """
        b, n = block.shape
        keys, values = (p(states).view(b, n, self.num_heads, self.head_dim) for p in (self.k_proj, self.v_proj))
        inside = block[:, None] == torch.arange(1, count + 1, device=block.device)[:, None]  # [B, R, N]
        visible = inside | ~inside.any(-1, keepdim=True)  # a block that is not there: no row of -inf
        queries = self.queries.to(keys.dtype).repeat(count, 1, 1).transpose(0, 1).expand(b, -1, -1, -1)  # [B, H, 2R, D]
        out = F.scaled_dot_product_attention(
            queries, keys.transpose(1, 2), values.transpose(1, 2), visible.repeat_interleave(2, 1)[:, None]
        )
        token, summary = self.o_proj(out.transpose(1, 2).flatten(2)).unflatten(1, (count, 2)).unbind(2)
        return token, F.pad(summary, (0, 0, 1, 0))

    def fuse(self, hidden: Tensor, summary: Tensor | None) -> Tensor:
        """States [..., E] with the global vector [..., E] (broadcast) in them.

        Raises:
            ValueError: no global vector (one of zeros stands for "no video yet").
        """
        if summary is None:
            raise ValueError("a drafter with visual=compressed needs the video's global vector (summary)")
        return self.fusion(torch.cat([hidden, summary.to(hidden.dtype).expand_as(hidden)], dim=-1))


def without_summary(fc: Tensor, bias: Tensor | None, fusion: Tensor, fusion_bias: Tensor) -> tuple[Tensor, Tensor]:
    """FC's weight [E, 2E] and bias [E] over plain states, for FC over states fused with a global vector of zero: what
    VATA leaves of a drafter with visual=compressed.

    Args:
        fc: [E, 2E], bias: [E] or None.
        fusion: [E, 2E], fusion_bias: [E], of the state and the global vector.
    """
    e = len(fc)
    state = fc[:, e:].float()
    weight = torch.cat([fc[:, :e].float(), state @ fusion[:, :e].float()], dim=1)
    more = state @ fusion_bias.float()
    return weight.to(fc.dtype), (more if bias is None else bias.float() + more).to(fc.dtype)


def visual_blocks(is_text: Tensor) -> Tensor:
    """int64 [B, P]: the block of contiguous visual tokens each place is in, from 1; 0 = text. is_text: bool [B, P]."""
    starts = ~is_text & F.pad(is_text[:, :-1], (1, 0), value=True)
    return starts.cumsum(1) * ~is_text
