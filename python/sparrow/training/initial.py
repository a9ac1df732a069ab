"""A drafter before its first step."""

import torch
from torch import Tensor

from sparrow.drafters.network import SparrowDrafter
from sparrow.targets.adapter import Target
from sparrow.training.answers import Answer
from sparrow.training.recipe import DrafterTraining


def layers(target: Target, config: DrafterTraining) -> tuple[tuple[int, ...], int | None]:
    """The layers whose states are reused (hidden_layer, then fused_layers) and visual_layer, counted from 0."""
    number, asked = target.num_layers, (config.drafter.hidden_layer, *config.drafter.fused_layers)
    for layer in asked:
        if not -number - 1 <= layer <= number:
            raise ValueError(f"drafter.hidden_layer must lie in [{-number - 1}, {number}], got {layer}")
    visual = number // 2 if config.recipe.visual_layer is None else config.recipe.visual_layer
    if not 0 <= visual <= number:
        raise ValueError(f"recipe.visual_layer must lie in [0, {number}], got {visual}")
    return tuple(k + number + 1 if k < 0 else k for k in asked), visual if config.recipe.visual else None


def new_drafter(target: Target, config: DrafterTraining, answers: list[Answer]) -> SparrowDrafter:
    """A drafter to be trained: float32, its draft vocabulary taken from the answers."""
    shape, (reused, visual_layer) = config.drafter, layers(target, config)
    more: dict[str, object] = {} if shape.rope_theta is None else {"rope_theta": shape.rope_theta}
    more |= {} if shape.grouped_heads else {"num_kv_heads": int(target.config.num_attention_heads)}
    drafter = SparrowDrafter.from_target(
        target, seed=config.optimisation.seed, hidden_layer=reused[0], fused_layers=reused[1:],
        hidden_norm=shape.hidden_norm, output_norm=shape.output_norm, positions=shape.positions, visual=shape.visual,
        visual_layer=0 if shape.visual == "none" else visual_layer, layer=shape.layer, own_head=shape.own_head,
        draft_vocab=shape.draft_vocab > 0, tree=shape.tree, **more,
    )  # fmt: skip
    drafter.place(target.device, torch.float32)
    if shape.draft_vocab:
        ids = frequent_tokens(answers, shape.draft_vocab, target.vocab_size).to(target.device)
        drafter.set_draft_vocab(ids)
        if shape.own_head:
            drafter.set_head(drafter.lm_head.weight.data[ids])
        drafter.attach(target)
    return drafter.train().requires_grad_(True)


def frequent_tokens(answers: list[Answer], size: int, vocab_size: int) -> Tensor:
    """The most frequent tokens of the answers in ascending order, int64 [<= size]; ties by lowest id."""
    counts = torch.bincount(torch.tensor([i for a in answers for i in a.ids]), minlength=vocab_size)
    kept = counts.argsort(descending=True, stable=True)[:size]
    return kept[counts[kept] > 0].sort().values
