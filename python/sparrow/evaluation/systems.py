"""What is compared, as plain data, and one timed run of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparrow.decoding.generate import generate
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.specvlm import SpecVLM
from sparrow.targets.borrow import lock_of
from sparrow.tree import TreeConfig

OURS = ("plain", "sparrow", "specvlm")
KINDS = ("transformers", "lookup", *OURS)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
AUTO = "auto"  # a tree: chosen while decoding, by `generate`
FASTEST = "fastest"  # a tree: of some, the fastest at each visual length, on other clips
LOOKUP_TOKENS = 10  # transformers' own choice in its documentation of prompt lookup


@dataclass(frozen=True)
class System:
    """One way to decode.

    Attributes:
        name: in tables; unique.
        kind: "transformers" = model.generate, "lookup" = the same with prompt_lookup_num_tokens, "plain" = our loop
            without a drafter, "sparrow" = our loop with one, "specvlm" = our loop with SpecVLM().
        drafter: its folder or arm (miniature.drafter_folder), for "sparrow".
        tree: "total-depth-width", for "sparrow"; "fastest" = chosen per visual length (trees.choose); "auto" = chosen
            while decoding, for prompts of one's own.
        overrides: fields of its DrafterConfig that are replaced.
        arm: what systems that differ in their trees only have in common; default: the name.
    """

    name: str
    kind: str
    drafter: str | None = None
    tree: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    arm: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a system's kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.kind == "sparrow") != (self.drafter is not None and self.tree is not None):
            raise ValueError(f"system {self.name!r}: drafter and tree belong to kind 'sparrow', and both to it")
        if self.overrides and self.kind != "sparrow":
            raise ValueError(f"system {self.name!r}: overrides belong to kind 'sparrow', got {self.overrides}")
        if self.tree not in (None, AUTO, FASTEST):
            TreeConfig.parse(str(self.tree))
        object.__setattr__(self, "arm", self.arm or self.name)


TRANSFORMERS, PLAIN = System("transformers", "transformers"), System("plain", "plain")
LOOKUP, SPECVLM = System("prompt lookup", "lookup"), System("SpecVLM", "specvlm")


@dataclass
class Timer:
    """A streamer: when which number of tokens came. The prompt's own `put` is not counted."""

    now: Callable[[], float]
    puts: list[tuple[float, int]] = field(default_factory=list)
    prompt_seen: bool = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.puts.append((self.now(), value.numel()))
        self.prompt_seen = True

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """One run over one clip.

    Attributes:
        tokens: everything emitted.
        seconds: of the whole call; decode_seconds: from the first emitted token on.
        decode_tokens: emitted after that moment.
        emitted: tokens of every round after the prefill.
        stages: wall seconds per stage of our loop (stats.STAGES); empty for transformers' own.
        arrivals: (seconds from the call on, tokens that came then), prefill's token first.
    """

    tokens: list[int]
    seconds: float
    decode_seconds: float
    decode_tokens: int
    emitted: list[int]
    stages: dict[str, float] = field(default_factory=dict)
    arrivals: list[tuple[float, int]] = field(default_factory=list)


def drafter_of(system: System, drafter: SparrowDrafter | None) -> SparrowDrafter | SpecVLM | None:
    """What drafts for one of OURS: its own drafter, or the target itself."""
    return SpecVLM() if system.kind == "specvlm" else drafter


@torch.no_grad()
def run(
    system: System, model: Any, drafter: SparrowDrafter | None, inputs: dict[str, Any], options: dict, seed: int,
    clock: str = "wall",
) -> Run:  # fmt: skip
    """Decodes one clip, batch 1.

    Args:
        system: how; `drafter` is its drafter, bound to the model.
        options: see questions.sampling.
        seed: of the noise: ours as generate's, transformers' by its global generator, which is left as it was.
        clock: a key of CLOCKS; "cpu" is this process' CPU time, the same on one thread of an idle machine.
    """
    with lock_of(model):
        return _run(system, model, drafter, inputs, options, seed, Timer(CLOCKS[clock]))


def _run(
    system: System, model: Any, drafter: SparrowDrafter | None, inputs: dict[str, Any], options: dict, seed: int,
    timer: Timer,
) -> Run:  # fmt: skip
    emitted = None
    stages: dict[str, float] = {}
    start = timer.now()
    if system.kind in OURS:
        tree = system.tree if system.tree in (None, AUTO) else TreeConfig.parse(str(system.tree))
        out = generate(
            model,
            drafter_of(system, drafter),
            **inputs,
            **options,
            seed=seed,
            tree=tree,
            streamer=timer,
        )
        sequence, emitted, stages = out.sequences, out.stats.emitted, out.stats.seconds
    else:
        more = {"prompt_lookup_num_tokens": LOOKUP_TOKENS} if system.kind == "lookup" else {}
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            sequence = model.generate(**inputs, **options, **more, streamer=timer)
    end = timer.now()
    tokens = sequence[0, inputs["input_ids"].shape[1] :].tolist()
    counts = [count for _, count in timer.puts]
    first = timer.puts[0] if timer.puts else (end, 0)
    arrivals = [(at - start, count) for at, count in timer.puts]
    return Run(tokens, end - start, end - first[0], len(tokens) - first[1], emitted or counts[1:], stages, arrivals)
