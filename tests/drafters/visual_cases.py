"""The rivals as drafters with random weights."""

import torch

import sparrow
from sparrow.targets.adapter import Target

RIVALS = {
    "text-only": {},
    "MSD": {"visual": "rows", "positions": "sequence"},
    "IVSB without VATA": {"visual": "rows", "visual_layer": 2, "positions": "sequence"},
    "MSD + VATA": {"visual": "none", "positions": "sequence"},
    "ViSpec": {"visual": "compressed", "positions": "sequence"},
}
VISUAL = ["MSD", "IVSB without VATA", "MSD + VATA", "ViSpec"]


def random_drafter(target: Target, rival: str, **more) -> sparrow.SparrowDrafter:
    """A random one; its fusion layer is random, too, as after training."""
    drafter = sparrow.SparrowDrafter.from_target(target, seed=1, **RIVALS[rival], **more)
    if rival == "ViSpec":
        g = torch.Generator().manual_seed(5)
        fusion = drafter.compressor.fusion
        fusion.weight.copy_(fusion.weight + 0.3 * torch.randn(fusion.weight.shape, generator=g))
        fusion.bias.copy_(torch.randn(fusion.bias.shape, generator=g))
    return drafter


def is_text(target: Target, inputs) -> torch.Tensor:
    return ~torch.isin(inputs["input_ids"], torch.tensor(sorted(target.visual_tokens())))
