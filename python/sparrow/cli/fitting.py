"""Whether a target and a drafter fit this machine's memory, from their folders alone."""

import pathlib

import torch
from safetensors import safe_open

from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.storage import CONFIG_FILE, WEIGHTS_FILE
from sparrow.targets.adapter import FAMILIES, MROPE_FAMILIES
from sparrow.targets.folder import TargetFolder
from sparrow.training.plan import SPARE, free_memory
from sparrow.tree import TreeConfig

LONG = 25_000  # tokens: a long video
Row = tuple[str, str]


def findings(folder: pathlib.Path, drafter: pathlib.Path | None, device: torch.device) -> tuple[list[Row], bool]:
    """Rows for the doctor's table, and whether both fit and belong together.

    Raises:
        ValueError: a target of no supported family, or a folder that is damaged.
    """
    target = TargetFolder(folder)
    text, size = target.text, target.dtype().itemsize
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    cache = 2 * int(text.num_hidden_layers) * heads * width * size * LONG
    parts = {"target": target.bytes(), f"cache of {LONG} tokens": cache}
    files, kind = len(set(target.where.values())), str(target.dtype()).removeprefix("torch.")
    rows = [("target", f"{FAMILIES[target.family]}, {files} safetensors file(s), {kind}")]
    numbering = "three axes (M-RoPE): --positions hf or reference" if target.family in MROPE_FAMILIES else "one axis"
    rows.append(("numbering", numbering))
    fits = True
    if drafter is not None:
        config = DrafterConfig.from_json((drafter / CONFIG_FILE).read_text())
        differs = [k for k, v in target.fingerprint().items() if config.target.get(k) != v]
        fits = not differs
        made = f"for another target ({differs[0]} differs)" if differs else "for this target"
        seen = "text rows only" if config.visual == "none" else f"sees the video ({config.visual})"
        rows.append(("drafter", f"{made}, {seen}, positions {config.positions}, tree {config.tree}"))
        parts["drafter"] = (drafter / WEIGHTS_FILE).stat().st_size
        kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size
        parts["its cache"] = kept * (2048 if config.visual == "none" else LONG)
        if config.draft_vocab and not config.own_head:
            parts["its head"] = draft_tokens(drafter) * config.hidden_size * size
        of_a_node = 4 * target.vocab_size + 8 * int(text.intermediate_size) * size
        parts["tree"] = TreeConfig.parse(config.tree).nodes * of_a_node
    total, free = sum(parts.values()), free_memory(device)
    rows += [(f"memory: {name}", f"{n / 2**30:.2f} GiB") for name, n in parts.items()]
    enough = total <= SPARE * free
    says = "fits" if enough else f"does not fit: {(total - SPARE * free) / 2**30:.2f} GiB too much"
    rows.append(("memory", f"{total / 2**30:.2f} GiB of {free / 2**30:.2f} GiB free on {device}: {says}"))
    return rows, fits and enough


def draft_tokens(drafter: pathlib.Path) -> int:
    """Tokens of the draft vocabulary in a drafter's folder."""
    with safe_open(drafter / WEIGHTS_FILE, framework="pt") as file:
        return int(file.get_slice("draft_vocab_ids").get_shape()[0])
