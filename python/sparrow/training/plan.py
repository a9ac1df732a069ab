"""What a run will take, before it is started: memory, disk and hours of each stage, and what does not fit."""

import pathlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter
from sparrow.training.clips import Clips
from sparrow.training.losses import CHUNK
from sparrow.training.passes import Passes
from sparrow.training.recipe import DrafterTraining
from sparrow.training.sequences import Batch

SAMPLE = 4  # clips that are prepared, to know how long prompts are
JSON_BYTES = 8  # of an answer's token in a file
SPARE = 0.9  # of what is free may be used
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest of SAMPLE prompts, text and visual, and of an answer at most; bytes of the largest."""

    text: int
    visual: int
    answer: int
    bytes: int = 0


@dataclass(frozen=True)
class Need:
    """What a stage takes.

    Attributes:
        stage: its name.
        parts: bytes of memory by what they are for; disk: bytes it writes.
        tokens: it handles in all.
        mend: settings that make it smaller, if they are not set so already.
    """

    stage: str
    parts: dict[str, int]
    disk: int
    tokens: int
    mend: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        return sum(self.parts.values())


def lengths_of(clips: Clips, visual_tokens: Any, answer: int) -> Lengths:
    """Of clips spread over all; visual_tokens: prompt ids -> bool, which are text."""
    numbers = sorted({round(i * (len(clips) - 1) / max(1, SAMPLE - 1)) for i in range(SAMPLE)})
    inputs = [clips.inputs(number) for number in numbers]
    ids = [x["input_ids"][0] for x in inputs]
    text = [int(visual_tokens(x).sum()) for x in ids]
    size = max(sum(value.nbytes for value in x.values()) for x in inputs)
    return Lengths(max(text), max(len(x) - t for x, t in zip(ids, text, strict=True)), answer, size)


def needs(
    config: DrafterTraining, text: Any, weights: int, drafter: DrafterConfig, clips: int, lengths: Lengths, size: int
) -> list[Need]:
    """The stages' needs, without anything being run.

    Args:
        config: of the run.
        text: the target's text config; weights: its bytes; size: bytes of a number of its.
        drafter: of the drafter to be trained.
        clips: their number; lengths: of the longest.
    """
    o, prompt = config.optimisation, lengths.text + lengths.visual
    jobs = clips * len(config.answers.temperatures)
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    kv = 2 * int(text.num_hidden_layers) * heads * drafter.head_dim * size
    running = (2 * int(text.intermediate_size) + 4 * int(text.hidden_size)) * size  # of a token in a layer
    a, one = config.answers, prompt + lengths.answer
    together = max(1, min(a.batch, a.batch_tokens // one))
    batch, waiting = together * one, (a.batch + a.ahead) * lengths.bytes
    mend = tuple(f"answers.{name}=1" for name, have in (("batch", together), ("ahead", a.ahead)) if have > 1)
    answers = Need(
        "answers", {"target": weights, "its cache": kv * batch, "its layers": running * batch, "decoded": waiting},
        jobs * lengths.answer * JSON_BYTES, jobs * lengths.answer, mend,
    )  # fmt: skip
    stored = size if config.states.dtype == "target" else SIZES[config.states.dtype]
    layers = len(drafter.state_layers) + int(drafter.hidden_layer != int(text.num_hidden_layers))
    of_a_visual = (1 + len(drafter.state_layers) * (drafter.visual == "states")) if config.recipe.visual else 0
    rows = (lengths.text + lengths.answer) * layers + lengths.visual * of_a_visual
    disk = jobs * rows * drafter.hidden_size * stored if config.states.cache else 0
    caught = (len(drafter.state_layers) + 2) * one * drafter.hidden_size * size
    mend = ("states.cache=false",) if config.states.cache else ()
    if config.recipe.visual and lengths.visual:
        mend = ("recipe.visual=false", *mend)
    states = Need("states", {"target": weights, "its cache": kv * one, "its layers": running * one, "states": caught},
                  disk, jobs * one, mend)  # fmt: skip
    kept = activations(drafter, config, lengths)
    number = sum(p.numel() for p in on_meta(drafter, int(text.vocab_size), config).parameters())
    moments = 4 if o.optimiser == "muon" else 8
    parts = {
        "target": weights,
        "drafter and gradients": 8 * number,
        "optimiser": moments * number,
        "bfloat16 copy": 2 * number if o.autocast == "bfloat16" else 0,
        "activations": kept,
        "losses": 28 * CHUNK,
    }
    smaller = [] if o.checkpointing else ["optimisation.checkpointing=true"]
    least = longest(config, lengths)
    if o.batch_rows > least:
        more = -(-o.batch_rows * o.accumulate // least)
        smaller.append(f"optimisation.batch_rows={least} optimisation.accumulate={more}")
    smaller.append("optimisation.sharding=fsdp optimisation.optimiser=adamw and torchrun on several GPUs")
    training = Need("training", parts, 12 * number, o.steps * o.batch_rows * o.accumulate, tuple(smaller))
    return [answers, states, training]


def longest(config: DrafterTraining, lengths: Lengths) -> int:
    """Rows of the longest training sequence."""
    return lengths.text + lengths.answer + (lengths.visual if config.recipe.visual else 0)


def on_meta(config: DrafterConfig, vocab_size: int, run: DrafterTraining) -> SparrowDrafter:
    """The drafter without memory, bound to tables without memory."""
    with torch.device("meta"):
        drafter = SparrowDrafter(config)
        rows = min(run.drafter.draft_vocab or vocab_size, vocab_size)
        if config.own_head:
            drafter.set_head(torch.empty(rows, config.hidden_size))
        head = torch.nn.Linear(config.hidden_size, vocab_size, bias=False)
        plain = replace(config, draft_vocab=False, own_head=False)
        drafter.config = plain  # a draft vocabulary's ids cannot be looked at on meta
        drafter.bind(torch.empty(vocab_size, config.hidden_size), head, torch.nn.Identity())
        drafter.config = config
    return drafter


def activations(config: DrafterConfig, run: DrafterTraining, lengths: Lengths) -> int:
    """Bytes that autograd keeps of one batch of batch_rows, counted in a forward pass without memory."""
    drafter = on_meta(config, 8, run).to(torch.bfloat16 if run.optimisation.autocast == "bfloat16" else torch.float32)
    drafter.rope_frequency = drafter.rope_frequency.float()
    if config.visual == "compressed":  # its blocks are counted by their values
        drafter.config = replace(config, visual="rows")
    sequences = max(1, run.optimisation.batch_rows // longest(run, lengths))
    batch = shaped(config, sequences, lengths, run.recipe.visual, torch.device("meta"))
    own = {p.untyped_storage()._cdata for p in (*drafter.parameters(), drafter.embedding)}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(value)
        return value

    alive: list[Tensor] = []  # or a freed tensor's number is given to the next
    passes = Passes(drafter, run.recipe, run.optimisation.checkpointing)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), _Fused():
        outs = list(passes.outputs(batch))
    return sum(kept.values()) + 3 * len(outs) * outs[0].nbytes


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: its inputs, its output, and a number per row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, mask, out, q[..., 0].float())
        return out


class _Fused(TorchFunctionMode):
    """On meta, attention would keep its weights, which no device's own does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3], (kwargs or {}).get("attn_mask"))
        return func(*args, **(kwargs or {}))


def shaped(config: DrafterConfig, sequences: int, lengths: Lengths, visual: bool, device: torch.device) -> Batch:
    """A batch of full length with zeros in it, and random states."""
    t, m, e = lengths.text + lengths.answer, lengths.visual if visual else 0, config.hidden_size
    whole = lambda *shape: torch.zeros(sequences, *shape, dtype=torch.int64, device=device)  # noqa: E731
    real = lambda *shape: torch.randn(sequences, *shape, device=device)  # noqa: E731
    rows = torch.arange(t, device=device).expand(sequences, t)
    width = e * len(config.state_layers) if config.visual == "states" else 0
    return Batch(
        tokens=whole(t), hidden=real(t, e * len(config.state_layers)), state=real(t, e), final=real(t, e),
        positions=rows, visual_states=real(m, width),
        follows_text=torch.ones(sequences, t, dtype=torch.bool, device=device),
        loss_pass=(rows - lengths.text + 1).clamp(min=0), visual=real(m, e), visual_positions=whole(m),
        visual_before=whole(t) + m, visual_block=whole(m) + 1,
    )  # fmt: skip


def seconds_of_a_step(
    drafter: SparrowDrafter, config: DrafterTraining, lengths: Lengths, optimisers: Sequence
) -> float:
    """One step on a full batch, after one to warm up, measured."""
    o, device = config.optimisation, drafter.weight.device
    sequences = max(1, o.batch_rows // longest(config, lengths))
    batch = shaped(drafter.config, sequences, lengths, config.recipe.visual, device)
    passes, counts = Passes(drafter, config.recipe, o.checkpointing), batch.counts(1 + config.recipe.mtp_depth)
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=o.autocast == "bfloat16"):
            loss, _ = passes(batch, counts)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
    return took * o.accumulate


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def free_disk(folder: pathlib.Path) -> int:
    """Bytes free where the folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
