"""GPU checks: decoding is lossless: the shipped pair, and every family by a tiny model; as `generate` does it."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import sparrow
from bench.gpu_worker import Case, Place, Skip
from sparrow.cli.loading import load_drafter, load_target
from sparrow.evaluation.questions import question, sampling
from sparrow.miniature.shipped import pair
from sparrow.targets.tiny import tiny_target
from sparrow.video import load_settings
from tests.videos import FAMILIES, sample_inputs

DTYPES = ("float32", "bfloat16", "float16")


def cases(place: Place) -> Iterator[Case]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    new = 24 if place.small else 80
    for length, tree in ((64, "12-6-2"),) if place.small else ((64, "12-6-2"), (1024, "30-4-8")):
        for dtype in DTYPES[: 1 if place.small else None]:
            yield Case(
                f"greedy {dtype} {length} {tree}",
                lambda d=dtype, n=length, t=tree: greedy(*load(place.device, d, n), max_new_tokens=new, tree=t),
            )
    for dtype in DTYPES[: 1 if place.small else None]:
        yield Case(f"captured and eager {dtype}", lambda d=dtype: loops(place, d, new))
        yield Case(f"sampled {dtype}", lambda d=dtype: sampled(place, d, new))
    yield Case("chosen trees", lambda: chosen(place, "float32" if place.small else "bfloat16", new))
    for family in FAMILIES[: 2 if place.small else None]:
        yield Case(f"tiny {family}", lambda f=family: tiny(place, f))
    yield Case("repetition penalty", lambda: greedy(*load(place.device, "float32", 64), max_new_tokens=new,
                                                     tree="30-4-8", repetition_penalty=1.3))  # fmt: skip
    yield Case("the CPU's tokens", lambda: as_on_the_cpu(place, new))


def load(device: str, dtype: str, length: int) -> tuple[Any, Any, dict[str, Tensor]]:
    """The shipped pair and a clip of the synthetic world: no video file is read."""
    folder, drafter = pair()
    model, tokenizer = load_target(folder, dtype, torch.device(device), False)
    made = question(load_settings(folder), tokenizer, length, 0, split="test").inputs
    return model, load_drafter(str(drafter), model), _to(model, made)


def _to(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    there = {name: x.to(model.device) for name, x in inputs.items()}
    return {name: x.to(model.dtype) if x.is_floating_point() and "pixel" in name else x for name, x in there.items()}


def greedy(model: Any, drafter: Any, inputs: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """transformers' tokens; in 16 bits but for near ties."""
    found = sparrow.compare(model, drafter, **inputs, **options)
    assert found.lossless, found.summary()
    assert found.identical or model.dtype != torch.float32, f"float32 must be identical: {found.summary()}"
    stats = found.output.stats
    return {"identical": found.identical, "tau": stats.tau, "rounds": stats.rounds, "says": f"tau {stats.tau:.2f}"}


def loops(place: Place, dtype: str, new: int) -> dict[str, Any]:
    """The captured step gives the eager one's tokens, whatever the dtype: the same kernels at the same shapes."""
    if "capture" not in inspect.signature(sparrow.generate).parameters:
        raise Skip("this generate has no captured step")
    model, drafter, inputs = load(place.device, dtype, 64)
    options = {**inputs, **sampling(0.0, new), "tree": "12-6-2"}
    captured, eager = (sparrow.generate(model, drafter, **options, capture=c).sequences for c in (True, False))
    assert torch.equal(captured, eager), "captured and eager steps give other tokens"
    return {"tokens": eager.shape[1] - inputs["input_ids"].shape[1]}


def chosen(place: Place, dtype: str, new: int) -> dict[str, Any]:
    """tree="auto", captured: its tokens, and its speed beside the drafter's own tree, which is the default on a GPU."""
    model, drafter, inputs = load(place.device, dtype, 64)
    options, found = {**inputs, **sampling(0.0, new)}, {}
    for tree in ("own", "auto") * 3:  # each tree's rounds are captured in the first calls
        found[tree] = sparrow.generate(model, drafter, **options, tree=tree)
    own, auto = found["own"], found["auto"]
    equal = torch.equal(own.sequences, auto.sequences)
    assert equal or dtype != "float32", "chosen trees give other tokens"
    ratio = auto.stats.decode_tokens_per_second / own.stats.decode_tokens_per_second
    says = f"{ratio:.2f} of the speed of {own.stats.tree}; rounds by tree {auto.stats.trees}"
    return {"equals the fixed tree": equal, "auto / own": ratio, "trees": auto.stats.trees, "says": says}


def sampled(place: Place, dtype: str, new: int) -> dict[str, Any]:
    """The same seed gives the tokens of the loop without a drafter; in 16 bits a fact, as few rows round otherwise."""
    model, drafter, inputs = load(place.device, dtype, 64)
    options = {**inputs, **sampling(1.0, new), "seed": 7}
    drafted = sparrow.generate(model, drafter, **options, tree="12-6-2").sequences
    equal = torch.equal(drafted, sparrow.generate(model, None, **options).sequences)
    assert equal or dtype != "float32", "drafted and plain sampling give other tokens"
    return {"equals the plain loop": equal}


def tiny(place: Place, family: str) -> dict[str, Any]:
    model = tiny_target(family).to(place.device)
    drafter = sparrow.SparrowDrafter.from_target(sparrow.Target(model))
    inputs = _to(model, sample_inputs(family))
    return greedy(model, drafter, inputs, max_new_tokens=24, eos_token_id=None)


def as_on_the_cpu(place: Place, new: int) -> dict[str, Any]:
    """Greedy tokens in float32, here and on the CPU."""
    tokens = []
    for device in (place.device, "cpu"):
        model, drafter, inputs = load(device, "float32", 64)
        out = sparrow.generate(model, drafter, **inputs, **sampling(0.0, new), tree="12-6-2").sequences
        tokens.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    assert tokens[0] == tokens[1], f"{sum(a == b for a, b in zip(*tokens, strict=False))} of {len(tokens[1])} equal"
    return {"tokens": len(tokens[1])}
