"""The training forward: a teacher-forced pass, then passes on the drafter's own outputs (MTP), with their losses."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparrow.drafters.network import SparrowDrafter
from sparrow.training.losses import distribution_losses, feature
from sparrow.training.recipe import Recipe
from sparrow.training.sequences import Batch


class Passes(nn.Module):
    """Outputs and losses of all passes over a batch.

    Pass 0 reads FC(e_t ++ h_{t-1}) with the target's states. Pass k reads FC(e_t ++ o_{t-1}), o the output of pass
    k - 1; rows that follow no text row keep their true state. Visual rows are the target's states, the same in every
    pass, and only ever keys and values: nothing is drafted from them.
    """

    def __init__(self, drafter: SparrowDrafter, recipe: Recipe, checkpointing: bool = False):
        super().__init__()
        self.drafter, self.recipe, self.checkpointing = drafter, recipe, checkpointing

    def outputs(self, batch: Batch) -> Iterator[Tensor]:
        """The drafter's output [B, T, E] in each of the 1 + mtp_depth passes."""
        d, dtype, summary = self.drafter, self.drafter.weight.dtype, None
        if d.config.visual == "compressed":
            batch, summary = compressed(d, batch)
        embedded = F.embedding(batch.tokens, d.embedding).to(dtype)
        true = hidden = d.reuse(batch.hidden.to(dtype), summary)
        visual = batch.visual.to(dtype)
        if d.config.visual == "states":
            visual = d.rows(visual, d.reuse(batch.visual_states.to(dtype)))
        elif d.config.layer == "eagle3":
            visual = d.rows(visual, visual)  # [B, 0, 2E]
        _, seen_keys, seen_values = d.project(visual, batch.visual_positions)
        chains: list[list[tuple[Tensor, Tensor]]] = [[] for _ in d.decoder_layers]
        cos_sin = d.cos_sin(batch.positions)
        for _ in range(1 + self.recipe.mtp_depth):
            out = d.rows(embedded, hidden)
            for layer, chain in zip(d.decoder_layers, chains, strict=True):
                queries, *own = layer.project(out, cos_sin)
                if self.recipe.mtp_attention != "tree":
                    chain.clear()
                chain.append((own[0], own[1]))
                keys = torch.cat([seen_keys, *(c[0] for c in chain)], dim=2)
                values = torch.cat([seen_values, *(c[1] for c in chain)], dim=2)
                given = (out, queries, keys, values, visible_rows(batch, len(chain) - 1))
                out = (
                    checkpoint(layer.attend, *given, use_reentrant=False)
                    if self.checkpointing
                    else layer.attend(*given)
                )
            yield out
            shifted = F.pad(d.reuse(out, summary)[:, :-1], (0, 0, 1, 0))
            hidden = torch.where(batch.follows_text[..., None], shifted, true)

    def forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of a batch.

        Args:
            batch: this process' sequences.
            counts: int64 [1 + mtp_depth], rows with a loss in each pass, over all processes.

        Returns:
            the weighted loss, this process' share of the sum (scalar), and per pass this process' sums of METRICS over
            rows, float32 [1 + mtp_depth, 3], detached.
        """
        r, rows, d = self.recipe, batch.loss_pass > 0, self.drafter
        at, outs = batch.loss_pass[rows], torch.stack([out[rows] for out in self.outputs(batch)])
        steps = torch.arange(len(outs), device=at.device)[:, None]
        weights = (at > steps) * (r.mtp_decay**steps / counts.clamp(min=1)[:, None]).float()
        total, metrics = distribution_losses(d, r, d.head_input(outs), batch.final[rows], weights)
        if r.feature:
            loss = r.feature * feature(outs, batch.state[rows].expand_as(outs))
            total = total + (loss * weights).sum()
            metrics[:, 0] += (loss.detach() * (weights > 0)).sum(-1)
        return total, metrics


def compressed(drafter: SparrowDrafter, batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with one row per visual block in place of its rows (ViSpec), and every text row's global vector
    [B, T, E].

    The one row has the number of the block's last row.
    """
    block = batch.visual_block
    count = int(block.max()) if block.numel() else 0
    tokens, summaries = drafter.compressor(batch.visual.to(drafter.weight.dtype), block, count)
    # the block of the last visual row before each text row; blocks are numbered in order
    before = F.pad(block, (1, 0)).gather(1, batch.visual_before)
    number = torch.arange(1, count + 1, device=block.device)[:, None]
    last = ((block[:, None] > 0) & (block[:, None] <= number)).sum(-1).sub(1).clamp(min=0)
    made = replace(batch, visual=tokens, visual_positions=batch.visual_positions.gather(1, last), visual_before=before)
    return made, summaries.gather(1, before[..., None].expand(-1, -1, summaries.shape[2]))


def visible_rows(batch: Batch, chain: int) -> Tensor:
    """bool [B, 1, T, M + (1 + chain) * T]: what text row t sees of the visual rows and of the passes' text rows.

    Of visual rows: those before it. With chain = 0: text rows s <= t of the one pass given. Else a row of pass `chain`
    is the node at that depth of a draft tree whose root is row t - chain: it sees the true rows s <= t - chain (pass
    0) and of each later pass j the one row on its own path, s = t - chain + j.
    """
    b, t = batch.tokens.shape
    device = batch.tokens.device
    visual = torch.arange(batch.visual.shape[1], device=device) < batch.visual_before[..., None]
    back = torch.arange(t, device=device)[:, None] - torch.arange(t, device=device)
    text = [back >= chain] + [back == chain - j for j in range(1, chain + 1)]
    return torch.cat([visual, *(block.expand(b, t, t) for block in text)], dim=-1)[:, None]
