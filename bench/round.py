"""One round of a decoder with random weights over a filled cache: time, operators, allocations and host reads by stage.

    python -m bench.round --size 7b --layers 2 --save bench/results/round/7b.json
    python -m bench.round --table bench/results/round/*.json

No prompt is run, so any visual length costs its memory alone. The drafter is random, too; how much of a tree is
accepted is scripted: the script's own operators are in the sample stage's time, not in its counts. On a GPU, --capture
times the round as one CUDA graph, too.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sparrow_ext
from sparrow.decoding.loop import read, step
from sparrow.decoding.runner import GRAPHS
from sparrow.decoding.stats import NoClock
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import DecodeState, Drafter, Pending
from sparrow.drafters.text import DraftCache, NoDrafter, TextDraft, TextDrafter
from sparrow.files import write_json
from sparrow.provenance import provenance
from sparrow.sampling import Sampler, SamplingRules
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, sized_target
from sparrow.tree import DraftTree, Root, TreeConfig
from sparrow_ext.ops.tree_mask import unpack_words
from tests.decoding.recorder import host_reads

SIZES = {  # the language models of Qwen2.5-VL-7B and -3B and of LLaVA-OneVision-0.5B
    "7b": TinySize(152064, 3584, 28, 28, 4, 18944),
    "3b": TinySize(151936, 2048, 36, 16, 2, 11008),
    "0.5b": TinySize(151936, 896, 24, 14, 2, 4864),
    "tiny": TinySize(),
}
LENGTHS = (500, 1500, 6000, 25000, 100000)
TEXT = 200  # text tokens of the prompt
STAGES = ("draft", "verify", "sample", "commit")


class Scripted(Sampler):
    """Draws as always; then `tau` tokens a round, on average, are those of the tree's longest path."""

    def __init__(self, tau: float, vocab_size: int, device: torch.device):
        super().__init__(SamplingRules(), torch.zeros(1, 1, dtype=torch.int64, device=device), vocab_size)
        accepted = [int((i + 1) * (tau - 1)) - int(i * (tau - 1)) for i in range(100)]
        self.scripted = True
        self.script = torch.tensor(accepted, device=device)
        self.round = torch.zeros(1, dtype=torch.int64, device=device)

    def choose(self, logits: Tensor, tree: DraftTree, length: Tensor, stops: Callable[[int], bool]) -> Tensor:
        chosen = super().choose(logits, tree, length, stops)
        if not self.scripted:
            return chosen
        n = tree.tokens.shape[1]
        used = torch.arange(n, device=chosen.device) < tree.num_nodes[:, None]
        deepest = torch.where(used, tree.depth, -1).argmax(1)
        path = unpack_words(tree.anc[0], n)[deepest]  # [1, N]
        below = torch.zeros(1, n + 1, dtype=torch.int64, device=chosen.device)
        below.scatter_add_(1, tree.depth.long(), tree.tokens * path)  # one node of the path per depth
        end = torch.minimum(self.script[self.round], tree.depth[0, deepest])
        self.round.copy_((self.round + 1) % len(self.script))
        return torch.where(path & (tree.depth < end), below.gather(1, tree.depth.long() + 1), chosen)


@dataclass
class Bench:
    """A target, a drafter and the tree they use."""

    target: Target
    drafter: Drafter
    shape: TreeConfig

    def state(self, visual: int, tau: float) -> "DecodeState[TextDraft | None]":
        """The state behind a prompt of TEXT and `visual` tokens, its caches filled with noise."""
        target, length = self.target, TEXT + visual
        device, size = target.device, target.config
        heads, dim = size.num_key_value_heads, size.hidden_size // size.num_attention_heads
        capacity = -(-(length + 1024 + self.shape.nodes) // 1024) * 1024
        noise = torch.randn(512, dim, device=device).to(target.embedding.dtype)
        buffer = noise.new_empty(target.num_layers, 2, 1, heads, capacity, dim)
        buffer.unflatten(-2, (-1, 512)).copy_(noise)
        cache = target.new_cache(capacity, (buffer, torch.zeros(1, dtype=torch.int32, device=device)))
        cache.set_length(length)
        root = torch.full((1,), 5, device=device)
        states = noise.new_zeros(1, size.hidden_size * (self.drafter.hidden_layer is not None))
        return DecodeState.after_prompt(
            cache, root, torch.full((1,), length + 1, device=device), torch.full((3, 1, 1), length, device=device),
            Scripted(tau, target.vocab_size, device), self._draft(root, states), sparrow_ext.error_word(device),
            self.shape, states,
        )  # fmt: skip

    def _draft(self, root: Tensor, states: Tensor) -> TextDraft | None:
        if not isinstance(self.drafter, TextDrafter):
            return None
        cache = DraftCache.empty(self.drafter.drafter, 1, TEXT + 700)
        for rows in (cache.keys, cache.values):
            rows.normal_()
        cache.lengths.fill_(TEXT)
        pending = Pending.room(root, self.shape.nodes, self.shape.max_path, states)
        pending.num_rows.fill_(1)
        return TextDraft(cache, pending)

    def step(self, state: DecodeState, clock: NoClock) -> int:
        """A round; returns how many tokens it emitted."""
        step(self.target, self.drafter, state, self.shape, clock, lambda token: False)
        with clock.stage("commit"):
            return len(read(state)[0])


class Stages(NoClock):
    """The present stage, and each one's least CPU seconds (on a GPU: wall seconds up to the end of its work)."""

    def __init__(self, device: torch.device):
        self.device, self.now = device, ""
        self.least = dict.fromkeys(STAGES, float("inf"))
        self.round: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.now, begin = name, self._time()
        yield
        self.round[name] += self._time() - begin
        self.now = ""

    def _time(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end_round(self) -> None:
        for name, seconds in self.round.items():
            self.least[name] = min(self.least[name], seconds)
        self.round.clear()


class Operators(TorchDispatchMode):
    """Counts the operators of each stage that compute: neither views nor bare allocations."""

    def __init__(self, stages: Stages):
        super().__init__()
        self.stages, self.counts = stages, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema = func._schema
        view = schema.returns and all(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if not view and schema.name not in ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::_unsafe_view"):
            self.counts[self.stages.now] += 1
        return func(*args, **(kwargs or {}))


class Allocations(NoClock):
    """Counts the allocator's calls of each stage: by the profiler, on a GPU by the allocator's own count."""

    def __init__(self, device: torch.device):
        self.device, self.counts = device, Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.device.type == "cuda":
            before = torch.cuda.memory_stats(self.device)["allocation.all.allocated"]
            yield
            self.counts[name] += torch.cuda.memory_stats(self.device)["allocation.all.allocated"] - before
            return
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            yield
        events = profile.profiler.kineto_results.events()
        self.counts[name] += sum(e.name() == "[memory]" and e.nbytes() > 0 for e in events)


def counted(bench: Bench, state: DecodeState) -> dict[str, dict[str, int]]:
    """Operators, allocations and host reads of one round, by stage; after two rounds that count nothing."""
    device, reads = bench.target.device, Counter()
    for _ in range(2):
        bench.step(state, NoClock())
    state.sampler.scripted = False
    stages = Stages(device)
    with Operators(stages) as operators:
        bench.step(state, stages)
    allocations = Allocations(device)
    bench.step(state, allocations)

    class Reads(NoClock):
        @contextmanager
        def stage(self, name: str) -> Iterator[None]:
            with host_reads() as names:
                yield
            reads[name] += len(names)

    bench.step(state, Reads())
    state.sampler.scripted = True
    made = {"operators": operators.counts, "allocations": allocations.counts, "host_reads": reads}
    return {name: {stage: counts[stage] for stage in STAGES} for name, counts in made.items()}


def timed(bench: Bench, states: dict[int, DecodeState], rounds: int) -> dict[int, dict[str, float]]:
    """Least seconds of each stage at each visual length, and tokens per round; the lengths take turns."""
    clocks = {length: Stages(bench.target.device) for length in states}
    emitted: Counter[int] = Counter()
    for _, (length, state) in itertools.product(range(rounds), states.items()):
        emitted[length] += bench.step(state, clocks[length])
        clocks[length].end_round()
    return {length: {**clock.least, "tau": emitted[length] / rounds} for length, clock in clocks.items()}


def replayed(bench: Bench, state: DecodeState, rounds: int) -> float:
    """Median wall seconds of a round that is captured and replayed, its read included."""
    for _ in range(2):
        bench.step(state, NoClock())
    graph, seconds = GRAPHS[bench.target.device.type](), []
    graph.capture(lambda: step(bench.target, bench.drafter, state, bench.shape, NoClock(), lambda token: False))
    for _ in range(rounds):
        begin = time.perf_counter()
        graph.replay()
        read(state)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


@torch.no_grad()
def measure(
    size: TinySize, tree: TreeConfig, lengths: tuple[int, ...], tau: float, rounds: int, device: torch.device,
    dtype: torch.dtype, capture: bool = False,
) -> dict[str, dict]:  # fmt: skip
    """Counts and times of drafted and plain rounds."""
    target = Target(sized_target("qwen2_5_vl", size, device, dtype))
    drafter = SparrowDrafter.from_target(target)
    spread = float(target.head.weight[:4096].float().std()) * target.config.hidden_size**0.5
    drafter.norm.weight.fill_(6 / spread)  # logits as far apart as a trained drafter's: the trees get deep
    benches = {"drafted": Bench(target, TextDrafter(drafter), tree), "plain": Bench(target, NoDrafter(), Root())}
    made: dict[str, dict] = {}
    with target.verifying():
        for name, bench in benches.items():
            states = {length: bench.state(length, tau if name == "drafted" else 1.0) for length in lengths}
            made[name] = counted(bench, states[lengths[0]])
            made[name]["seconds"] = timed(bench, states, rounds)
            if capture:
                made[name]["captured_seconds"] = {n: replayed(bench, state, rounds) for n, state in states.items()}
    return made


def table(results: list[dict]) -> str:
    """Markdown: what a round dispatches, and the draft's and the round's time over the visual length."""
    lines = [
        "| size (layers run) | rounds | operators: draft, verify, sample, commit | allocations | host reads "
        "| draft's time at each visual length, over the first | round's |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, row in result["results"].items():
            parts = ", ".join(str(row["operators"][stage]) for stage in STAGES)
            seconds = list(row["seconds"].values())
            whole = [sum(s[stage] for stage in STAGES) for s in seconds]
            draft = ", ".join(f"{s['draft'] / seconds[0]['draft']:.2f}" for s in seconds) if name == "drafted" else ""
            cells = [
                f"{result['size']} ({result['layers']})", name, parts, str(sum(row["allocations"].values())),
                str(sum(row["host_reads"].values())), draft, ", ".join(f"{w / whole[0]:.2f}" for w in whole),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--layers", type=int, default=None, help="of the decoder; default: all")
    parser.add_argument("--vocab", type=int, default=None, help="default: the model's")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="visual tokens")
    parser.add_argument("--tree", type=TreeConfig.parse, default="30-4-8")
    parser.add_argument("--tau", type=float, default=4.37, help="tokens a round emits; the tree's depth + 1 at most")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--capture", action="store_true", help="time captured rounds, too (on a GPU)")
    parser.add_argument("--save", type=pathlib.Path, default=None)
    parser.add_argument("--table", type=pathlib.Path, nargs="+", default=None, help="print saved results and no more")
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(file.read_text()) for file in given.table]))
        return 0
    if given.device.type == "cpu":
        torch.set_num_threads(1)
    full = SIZES[given.size]
    size = TinySize(**{**vars(full), "num_layers": given.layers or full.num_layers})
    if given.vocab:
        size = TinySize(**{**vars(size), "vocab_size": given.vocab})
    made = measure(
        size, given.tree, tuple(given.lengths), given.tau, given.rounds, given.device, getattr(torch, given.dtype),
        given.capture,
    )  # fmt: skip
    gpu = torch.cuda.get_device_name(given.device) if given.device.type == "cuda" else None
    result = {
        "provenance": provenance(" ".join(["python -m bench.round", *sys.argv[1:]])) | ({"gpu": gpu} if gpu else {}),
        "size": given.size, "layers": size.num_layers, "vocab": size.vocab_size, "tree": str(given.tree),
        "tau": given.tau, "dtype": given.dtype, "text_tokens": TEXT, "results": made,
    }  # fmt: skip
    if given.save:
        given.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.save, result, indent=1)
    print(table([json.loads(json.dumps(result))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
