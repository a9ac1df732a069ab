"""A drafter before its first step."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.storage import shape_of
from sparrow.targets.adapter import Target
from sparrow.training.answers import Answer
from sparrow.training.recipe import DrafterTraining

SAME = (
    "hidden_norm",
    "output_norm",
    "num_layers",
    "layer",
    "own_head",
    "positions",
    "visual",
    "tree",
)  # of Shape and DrafterConfig


def layers(target: Target, config: DrafterTraining) -> tuple[tuple[int, ...], int | None]:
    """The layers whose states are reused (hidden_layer, then fused_layers) and visual_layer, counted from 0."""
    return layers_of(target.num_layers, config)


def layers_of(number: int, config: DrafterTraining) -> tuple[tuple[int, ...], int | None]:
    """As `layers`, of a target with so many layers."""
    asked = (config.drafter.hidden_layer, *config.drafter.fused_layers)
    for layer in asked:
        if not -number - 1 <= layer <= number:
            raise ValueError(f"drafter.hidden_layer must lie in [{-number - 1}, {number}], got {layer}")
    visual = number // 2 if config.recipe.visual_layer is None else config.recipe.visual_layer
    if not 0 <= visual <= number:
        raise ValueError(f"recipe.visual_layer must lie in [0, {number}], got {visual}")
    return tuple(k + number + 1 if k < 0 else k for k in asked), visual if config.recipe.visual else None


def config_of(shape: dict[str, object], config: DrafterTraining, num_layers: int) -> DrafterConfig:
    """The drafter's config; shape: of storage.shape_of, and the target's fingerprint."""
    own, (reused, visual_layer) = config.drafter, layers_of(num_layers, config)
    more: dict[str, object] = {} if own.rope_theta is None else {"rope_theta": own.rope_theta}
    more |= {} if own.grouped_heads else {"num_kv_heads": shape["num_heads"]}
    more |= {name: getattr(own, name) for name in SAME}
    more |= {"hidden_layer": reused[0], "fused_layers": reused[1:], "draft_vocab": own.draft_vocab > 0}
    more["numbering"] = config.states.positions
    more["visual_layer"] = 0 if own.visual == "none" else visual_layer
    return DrafterConfig(**{**shape, **more})  # type: ignore[arg-type]


def new_drafter(target: Target, config: DrafterTraining, answers: list[Answer]) -> SparrowDrafter:
    """A drafter to be trained: float32; a new one's draft vocabulary is taken from the answers.

    Raises:
        ValueError: drafter.start is no drafter of the target, or has another shape; the first difference is named.
    """
    shape = config.drafter
    made = asdict(config_of(shape_of(target.config) | {"target": target.fingerprint()}, config, target.num_layers))
    if shape.start is not None:
        drafter = _started(target, shape.start, made, config.optimisation.seed)
        if shape.draft_vocab > drafter.num_draft_tokens and not shape.own_head:  # it reads the target's head
            drafter.set_draft_vocab(frequent_tokens(answers, shape.draft_vocab, target.vocab_size).to(target.device))
            drafter.attach(target)
        return drafter.train().requires_grad_(True)
    del made["target"]  # from_target's own
    drafter = SparrowDrafter.from_target(target, seed=config.optimisation.seed, **made)
    drafter.place(target.device, torch.float32)
    if shape.draft_vocab:
        ids = frequent_tokens(answers, shape.draft_vocab, target.vocab_size).to(target.device)
        drafter.set_draft_vocab(ids)
        if shape.own_head:
            drafter.set_head(drafter.lm_head.weight.data[ids])
        drafter.attach(target)
    return drafter.train().requires_grad_(True)


def _started(target: Target, folder: str, made: dict[str, Any], seed: int) -> SparrowDrafter:
    """The drafter in the folder, whose config must be `made` but for what does not shape its weights, or what it can
    grow to.
    """
    drafter = SparrowDrafter.from_pretrained(folder, numbering=made["numbering"], tree=made["tree"])
    more, fused = made["num_layers"] > drafter.config.num_layers, drafter.config.fused_layers
    if (more and fused == made["fused_layers"]) or (made["fused_layers"] and not fused):
        drafter = _grown(drafter, made, seed)
    have = asdict(drafter.config)
    drafter.place(target.device, torch.float32).attach(target)
    if other := [name for name, value in made.items() if have[name] != value]:
        raise ValueError(f"drafter.start has {other[0]}={have[other[0]]!r}, this run asks for {made[other[0]]!r}")
    return drafter


def _grown(drafter: SparrowDrafter, made: dict[str, Any], seed: int) -> SparrowDrafter:
    """The drafter with more decoder layers, or fused layers, as `made` has them; at first it drafts what it drafted."""
    have, fused = drafter.config, tuple(made["fused_layers"])
    config = replace(have, num_layers=made["num_layers"], fused_layers=fused)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = SparrowDrafter(config).state_dict()
    for layer in range(have.num_layers, config.num_layers):
        for name in ("self_attn.o_proj", "mlp.down_proj"):  # of which the layer adds nothing
            weights[f"layers.{layer}.{name}.weight"].zero_()
    if fused:
        e = have.hidden_size
        weights["fuse.weight"] = torch.cat([torch.eye(e), torch.zeros(e, e * len(fused))], dim=1)
    return SparrowDrafter.of(config, weights | drafter.state_dict())


def frequent_tokens(answers: list[Answer], size: int, vocab_size: int) -> Tensor:
    """The most frequent tokens of the answers in ascending order, int64 [<= size]; ties by lowest id."""
    counts = torch.bincount(torch.tensor([i for a in answers for i in a.ids]), minlength=vocab_size)
    kept = counts.argsort(descending=True, stable=True)[:size]
    return kept[counts[kept] > 0].sort().values
