"""Numbers that are not as usual: logits without a distribution, other default dtypes, values out of range."""

import math

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import sparrow
from sparrow.drafters.text import NoDrafter
from sparrow.sampling import SamplingRules
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import tiny_target
from sparrow.tree import TreeConfig
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import sample_inputs

SHAPE = TreeConfig(15, 5, 3)


class Set(LogitsProcessor):
    """Sets one logit, or all, from the n-th call on."""

    def __init__(self, value, n, everywhere):
        self.value, self.left, self.where = value, n, slice(None) if everywhere else slice(7, 8)

    def __call__(self, input_ids, scores):
        self.left -= 1
        if self.left < 0:
            scores = scores.clone()
            scores[:, self.where] = self.value
        return scores


BAD = [(math.nan, False), (math.inf, False), (-math.inf, True)]


@pytest.mark.parametrize(("value", "everywhere"), BAD)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_processors_that_leave_nothing_to_draw(tiny, value, everywhere, n):
    """transformers raises when it samples, and takes the argmax when it does not."""
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision", videos=0)

    def options(sample):
        given = LogitsProcessorList([Set(value, n, everywhere)])
        return {**inputs, "max_new_tokens": n + 1, "eos_token_id": None, "do_sample": sample, "logits_processor": given}

    with pytest.raises(RuntimeError, match="probability tensor contains"):
        model.generate(**options(True))
    want = model.generate(**options(False))
    for drafter in (None, ScriptedDrafter(want[0], lambda r: 5)):
        tree = None if drafter is None else SHAPE
        with pytest.raises(RuntimeError, match="cannot sample: the logits of a token hold NaN"):
            sparrow.generate(model, drafter, **options(True), tree=tree, seed=0)
        assert torch.equal(sparrow.generate(model, drafter, **options(False), tree=tree).sequences, want)


@pytest.mark.parametrize(("value", "everywhere"), BAD)
@pytest.mark.parametrize("rules", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1}])
@pytest.mark.parametrize("new", [1, 5])
def test_weights_that_leave_nothing_to_draw(value, everywhere, rules, new):
    model, inputs = tiny_target("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    options = {**inputs, "max_new_tokens": new, "eos_token_id": None}
    with torch.no_grad():
        model.lm_head = torch.nn.Linear(64, 300).eval()
        model.lm_head.bias[slice(None) if everywhere else slice(7, 8)] = value
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        model.generate(**options, do_sample=True, **rules)
    with pytest.raises(RuntimeError, match="cannot sample"):
        sparrow.generate(model, None, **options, do_sample=True, seed=0, **rules)
    want = model.generate(**options, do_sample=False)
    assert torch.equal(sparrow.generate(model, None, **options).sequences, want)


class Poisoned(ScriptedDrafter):
    """One more sibling at the root, the token `bad`; every third round."""

    def __init__(self, truth, bad):
        super().__init__(truth, lambda r: r % 6)
        self.bad = bad

    def draft(self, state, shape):
        tree = super().draft(state, shape)
        tree.tokens[0, 1] = self.bad
        return tree


def test_a_drafted_token_that_is_not_drawn_breaks_nothing(tiny):
    """NaN in nodes nobody visits is nobody's business; where the walk comes by, it is an error."""
    model, inputs = tiny_target("llava_onevision"), sample_inputs("llava_onevision", videos=0)
    prompt = inputs["input_ids"].shape[1]
    options = {**inputs, "max_new_tokens": 24, "eos_token_id": None, "do_sample": True, "seed": 4}
    want = sparrow.generate(model, None, **options).sequences
    bad = next(i for i in range(299, 0, -1) if i not in want)
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[bad] = math.nan
    rounds = []
    out = sparrow.generate(
        model, Poisoned(want[0], bad), **options, tree=SHAPE, on_round=lambda *round_: rounds.append(round_)
    )
    assert torch.equal(out.sequences, want) and len(rounds) == out.stats.rounds
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[want[0, prompt + 10]] = math.nan
    for drafter in (None, ScriptedDrafter(want[0], lambda r: 5)):
        rounds.clear()
        with pytest.raises(RuntimeError, match="cannot sample"):
            sparrow.generate(
                model, drafter, **options, tree=drafter and SHAPE, on_round=lambda *round_: rounds.append(round_)
            )
        emitted = [token for tokens, *_ in rounds for token in tokens]
        assert emitted == want[0, prompt + 1 :][: len(emitted)].tolist() and 5 <= len(emitted) <= 10


# --- dtypes ---


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


DRAFTERS = {
    "none": lambda target: None,
    "text": sparrow.SparrowDrafter.from_target,
    "ViSpec": lambda target: sparrow.SparrowDrafter.from_target(target, visual="compressed", positions="sequence"),
    "MSD": lambda target: sparrow.SparrowDrafter.from_target(target, visual="rows", positions="sequence"),
    "SpecVLM": lambda target: sparrow.SpecVLM(keep=0.3),
}
WAYS = {
    "greedy": {"do_sample": False},
    "penalty": {"do_sample": False, "repetition_penalty": 1.05},
    "sampled": {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.05,
        "seed": 1,
    },
    "other processor": {"do_sample": True, "min_p": 0.05, "seed": 1},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", DRAFTERS)
def test_the_callers_default_dtype(tiny, default_dtype, name, dtype):
    """The drafter is made under it, too."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    options = {**inputs, "max_new_tokens": 10, "eos_token_id": None}
    default_dtype(dtype)
    drafter = DRAFTERS[name](Target(model))
    for way in WAYS.values():
        out = sparrow.generate(model, drafter, **options, **way)
        if way["do_sample"]:
            want = sparrow.generate(model, None, **options, **way).sequences
        else:
            want = model.generate(**options, **way)
        assert torch.equal(out.sequences, want), way
    if name == "none":
        assert sparrow.compare(model, None, **inputs, max_new_tokens=10).identical


def test_a_float64_model_is_refused_before_it_runs(tiny):
    model, inputs = tiny_target("qwen2_5_vl", dtype=torch.float64), sample_inputs("qwen2_5_vl")
    model.register_forward_pre_hook(lambda *args: pytest.fail("it ran"))
    message = "model must be in float32, bfloat16, float16; this one is in float64"
    with pytest.raises(ValueError, match=message):
        sparrow.generate(model, None, **inputs, max_new_tokens=4)
    with pytest.raises(ValueError, match=message):
        Target(model)


class InDoubles(LogitsProcessor):
    """float64 scores that float32 cannot tell apart; the last of the best is the best by a hair, and far up or down."""

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, input_ids, scores):
        hair = torch.arange(scores.shape[-1], dtype=torch.float64) * 1e-12
        return (scores.double() / 4).round() + hair + self.shift


@pytest.mark.parametrize("shift", [0.0, 1e300, -1e300])
def test_a_processor_that_returns_float64(tiny, greedy, shift):
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision", videos=0)
    options = {"max_new_tokens": 20, "eos_token_id": None, "logits_processor": LogitsProcessorList([InDoubles(shift)])}
    want = greedy(model, inputs, 20, logits_processor=options["logits_processor"])
    out = sparrow.generate(model, ScriptedDrafter(want[0], lambda r: r % 6), **inputs, **options, tree=SHAPE)
    assert torch.equal(out.sequences, want)
    drawn = [
        sparrow.generate(model, drafter, **inputs, **options, do_sample=True, seed=3, tree=drafter and SHAPE).sequences
        for drafter in (None, ScriptedDrafter(want[0], lambda r: 5))
    ]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], want)


# --- values ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1e-40}, r"temperature must be 0 \(greedy\) or lie in \[1e-30, 3.40282e\+38\], got 1e-40"),
        ({"temperature": 1e39}, r"temperature must .*, got 1e\+39"),
        ({"temperature": math.inf}, r"temperature must .*, got inf"),
        ({"top_k": 2**31}, r"top_k must lie in \[0, 2147483647\] \(0 = off\), got 2147483648"),
        ({"repetition_penalty": 1e39}, r"repetition_penalty must lie in .*, got 1e\+39"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must lie in .*, got inf"),
        ({"repetition_penalty": 1e-46}, "repetition_penalty must lie in .*, got 1e-46"),
        ({"on_round": 3}, "on_round must be callable, got int"),
    ],
)
def test_values_refused_at_the_door(tiny, options, message):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    hook = model.register_forward_pre_hook(lambda *args: pytest.fail("it ran"))
    try:
        with pytest.raises(ValueError, match=message):
            sparrow.generate(model, None, **inputs, max_new_tokens=4, do_sample=True, **options)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "values", [{"temperature": 1e-30}, {"temperature": 3e38}, {"top_k": 2**31 - 1}, {"top_p": 0.0}]
)
def test_values_just_inside(tiny, values):
    """What the rules let through the operators take."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    out = sparrow.generate(model, None, **inputs, max_new_tokens=4, eos_token_id=None, do_sample=True, seed=0, **values)
    assert out.stats.new_tokens == 4
    assert SamplingRules(**{"temperature": 1.0, **values})


@pytest.mark.parametrize("values", [{"temperature": math.nan}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.1}])
def test_rules_refuse_by_name(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must "):
        SamplingRules(**values)


def test_plain_decoding_has_no_tree(tiny):
    with pytest.raises(ValueError, match="tree needs a drafter"):
        NoDrafter().in_loop(Target(tiny("qwen2_5_vl")), TreeConfig())
