"""sparrow.generate as its users meet it: what it refuses, what it leaves behind, what it costs, what it reports."""

import contextlib
import json
import time

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import sparrow
from sparrow.decoding import runner
from sparrow.targets.adapter import Target
from sparrow.targets.versions import cache_argument
from sparrow.tree import TreeConfig
from tests.decoding.recorder import host_reads
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import sample_inputs

SHAPE = TreeConfig(15, 5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"use_cache": False}, "use_cache=False"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"cache": object()}, "cache"),
        ({"positions": "mine"}, "positions must be"),
        ({"stop_strings": ["a"]}, "needs tokenizer="),
        ({"no_such_option": 1}, "no_such_option"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, got 2.5"),
        ({"seed": 2**63, "do_sample": True}, "seed must be an integer of 64 bits, got 9223372036854775808"),
        ({"seed": 1.5}, "seed must be an integer of 64 bits, got 1.5"),
        ({"streamer": 3}, "streamer must have put and end, .* got int"),
        ({"drafter": "folder"}, "drafter must be .*, got str"),
        ({"drafter": sparrow.SparrowDrafter}, "drafter must be .*, got the class SparrowDrafter"),
        ({"tree": (4, 2, 2)}, r"tree must be a TreeConfig, .* or text .*, got \(4, 2, 2\)"),
        ({"input_ids": None}, "input_ids must be an int64 tensor .*, got NoneType"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.int64)}, r"input_ids must be .*, got torch.int64 \[1, 0\]"),
        ({"input_ids": torch.ones(1, 2)}, r"input_ids must be .*, got torch.float32 \[1, 2\]"),
        ({"input_ids": torch.tensor([[1, 10**6]])}, r"input_ids must lie in \[0, \d+\), got 1000000"),
        ({"input_ids": torch.tensor([[1, -7]])}, r"input_ids must lie in \[0, \d+\), got -7"),
    ],
)
def test_unsupported_options_are_refused_by_name(tiny, options, message):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", videos=0)
    with pytest.raises(ValueError, match=message):
        sparrow.generate(model, **{"drafter": None, **inputs, "max_new_tokens": 4, **options})


def test_unsupported_models_are_refused(tiny):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    with pytest.raises(ValueError, match="model_type='llama'"):
        Target(LlamaForCausalLM(LlamaConfig(**small)))
    model = tiny("qwen2_5_vl", 17)
    model.config.get_text_config().layer_types = ["full_attention"] * 3 + ["sliding_attention"]
    with pytest.raises(ValueError, match="sliding_attention"):
        Target(model)
    mistral = tiny("llava_next_video", 17)
    mistral.config.get_text_config().sliding_window = 4096
    with pytest.raises(ValueError, match="full attention only; this llava_next_video config has sliding_window=4096"):
        Target(mistral)


def test_wrong_drafter_is_refused(tiny):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("llava_onevision")))
    with pytest.raises(ValueError, match="the drafter was made for a target with family"):
        sparrow.generate(tiny("qwen2_5_vl"), drafter, **sample_inputs("qwen2_5_vl"), max_new_tokens=4)
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")
    with pytest.raises(ValueError, match=r"is torch.bfloat16 on cpu, the model torch.float32 on cpu: call .*place"):
        sparrow.generate(model, drafter.place(model.device, torch.bfloat16), **inputs, max_new_tokens=4)
    with pytest.raises(ValueError, match="model must be a transformers model, got Linear"):
        sparrow.generate(torch.nn.Linear(2, 2), None, **inputs)


class Breaks:
    """A streamer that fails after some tokens."""

    def __init__(self, error, after):
        self.error, self.left = error, after

    def put(self, value):
        self.left -= 1
        if self.left < 0:
            raise self.error

    def end(self):
        pass


@pytest.mark.parametrize("error", [None, RuntimeError("streamer"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_model_is_left_as_found(tiny, greedy, error, after):
    model, inputs = tiny("qwen2_5_vl", 2), sample_inputs("qwen2_5_vl")
    model.model.language_model.layers[1].train()
    model.model.rope_deltas = marker = torch.tensor([[123]])
    text = model.config.get_text_config()
    before = text._attn_implementation, model.config._attn_implementation, [m.training for m in model.modules()]
    streamer = Breaks(error, after) if error is not None else None
    with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
        sparrow.generate(model, None, **inputs, max_new_tokens=12, eos_token_id=None, streamer=streamer)
    after_state = text._attn_implementation, model.config._attn_implementation, [m.training for m in model.modules()]
    assert before == after_state
    offset = model.model.rope_deltas
    assert (offset is marker) == (error is not None)
    model.eval()
    want = greedy(model, inputs, 8)
    assert error is not None or torch.equal(offset, model.model.rope_deltas)  # as transformers' generate leaves it
    assert torch.equal(sparrow.generate(model, None, **inputs, max_new_tokens=8, eos_token_id=None).sequences, want)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("n", [1, 7, 16])
def test_returned_cache_continues_in_transformers(tiny, greedy, family, n):
    model, inputs = tiny(family), sample_inputs(family)
    want = greedy(model, inputs, n + 20)
    drafter = ScriptedDrafter(want[0], lambda r: 5)
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=n, eos_token_id=None, tree=SHAPE)
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
    rest = {"position_ids": None}
    if "mm_token_type_ids" in inputs:  # positions go on from the prompt's, as generate numbers them
        ids, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
        more = ids[..., -1:] + 1 + torch.arange(n)
        text_axis = torch.arange(out.sequences.shape[1])[None, None]
        rest["position_ids"] = torch.cat([text_axis, torch.cat([ids, more], dim=-1)])
    final = model.generate(
        input_ids=out.sequences, attention_mask=torch.ones_like(out.sequences),
        do_sample=False, max_new_tokens=20, eos_token_id=None, **{cache_argument(model): out.cache},
        **{k: v for k, v in rest.items() if v is not None},
    )  # fmt: skip
    assert torch.equal(final, want)


def test_one_host_synchronisation_per_round(tiny, monkeypatch):
    """Counted by wrapping every way from a tensor to the host, inside the round."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    counts = []
    original_round = runner.decode_round

    def one_round(*args, **kwargs):
        with host_reads() as names:
            result = original_round(*args, **kwargs)
        counts.append(len(names))
        return result

    monkeypatch.setattr(runner, "decode_round", one_round)
    makers = ({}, {"visual": "compressed", "positions": "sequence"})
    drafters = [sparrow.SparrowDrafter.from_target(Target(model), **options) for options in makers]
    for drafter in (*drafters, sparrow.SpecVLM(keep=0.2)):
        for options in ({}, {"do_sample": True, "top_k": 5, "repetition_penalty": 1.1}):
            counts.clear()
            sparrow.generate(model, drafter, **inputs, max_new_tokens=12, eos_token_id=None, **options)
            assert len(counts) >= 3 and set(counts) == {1}, counts


def test_other_processors_synchronise_once_per_visited_node(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    calls = []

    def spy(ids, scores):
        calls.append(ids.shape[1])
        return scores

    prompt = inputs["input_ids"].shape[1]
    out = sparrow.generate(
        model, sparrow.SparrowDrafter.from_target(Target(model)), **inputs, max_new_tokens=12, eos_token_id=None,
        logits_processor=[spy],
    )  # fmt: skip
    assert calls == list(range(prompt, prompt + 12)) and out.stats.new_tokens == 12


def test_statistics(tiny, greedy):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    want = greedy(model, inputs, 40)
    out = sparrow.generate(
        model, ScriptedDrafter(want[0], lambda r: r % 6), **inputs, max_new_tokens=40, eos_token_id=None, tree=SHAPE
    )
    s = out.stats
    assert s.prompt_tokens == inputs["input_ids"].shape[1] and s.visual_tokens == 8 and s.new_tokens == 40
    assert sum(s.emitted) == 39 and s.tau == 39 / s.rounds and sum(s.accepted_histogram) == s.rounds
    assert s.acceptance_by_depth[0] == sum(a >= 1 for a in s.accepted) / s.rounds
    assert all(v > 0 for v in s.seconds.values()) and s.total_seconds >= sum(s.seconds.values())
    assert s.peak_memory_bytes > 1e6 and s.decode_tokens_per_second > s.tokens_per_second > 0
    assert s.as_dict()["tau"] == s.tau and s.tree == "15-5-3"
    one = sparrow.generate(model, ScriptedDrafter(want[0], lambda r: 5), **inputs, max_new_tokens=1, tree=SHAPE).stats
    values = json.loads(json.dumps(one.as_dict(), allow_nan=False))
    assert values["new_tokens"] == 1 and values["rounds"] == 0 and values["tau"] is None
    assert values["acceptance_by_depth"] == [None] * 5 and values["tokens_per_second"] > 0


def test_tree_as_text(tiny, greedy):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    script = ScriptedDrafter(greedy(model, inputs, 8)[0], lambda r: 2)
    out = sparrow.generate(model, script, **inputs, max_new_tokens=8, eos_token_id=None, tree="15-5-3")
    assert out.stats.tree == "15-5-3"
    with pytest.raises(ValueError, match="total-depth-width"):
        sparrow.generate(model, script, **inputs, max_new_tokens=8, tree="wide")


class Texts:
    def __init__(self):
        self.puts, self.ended = [], False

    def put(self, value):
        self.puts.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_streamer_gets_what_transformers_gives(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    theirs, ours = Texts(), Texts()
    model.generate(**inputs, do_sample=False, max_new_tokens=9, eos_token_id=None, streamer=theirs)
    sparrow.generate(model, None, **inputs, max_new_tokens=9, eos_token_id=None, streamer=ours)
    assert ours.puts == theirs.puts and ours.ended and theirs.ended


@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("where", ["length", "end of sequence"])
def test_rounds_streamer_and_criteria_agree(tiny, greedy, processor, where):
    """Each token is emitted once, in order, by one road, whoever asked whether it ends the text."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    prompt, eos = inputs["input_ids"].shape[1], None
    want = greedy(model, inputs, 23)
    if where == "end of sequence":
        eos = int(want[0, -1])
        want = greedy(model, inputs, 23, eos_token_id=eos)
    seen, asked, texts, rounds = [], [], Texts(), []

    class Ask(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            asked.append(int(input_ids[0, -1]))
            return torch.zeros(1, dtype=torch.bool)

    def on_round(tokens, accepted, seconds):
        assert seconds > 0 and [t for put in texts.puts[1:] for t in put][-len(tokens) :] == tokens
        rounds.append((tokens, accepted))

    more = {"logits_processor": [lambda ids, scores: seen.append(ids.shape[1]) or scores]} if processor else {}
    out = sparrow.generate(
        model, ScriptedDrafter(torch.cat([want, want[:, :6]], 1)[0], lambda r: 5), **inputs, **more, tree=SHAPE,
        max_new_tokens=23 if eos is None else 40, eos_token_id=eos, streamer=texts, on_round=on_round,
        stopping_criteria=StoppingCriteriaList([Ask()]),
    )  # fmt: skip
    new = want[0, prompt:].tolist()
    assert torch.equal(out.sequences, want)
    assert [len(tokens) for tokens, _ in rounds] == out.stats.emitted
    assert [accepted for _, accepted in rounds] == out.stats.accepted
    assert [new[0], *(t for tokens, _ in rounds for t in tokens)] == new == asked
    assert texts.puts[1:] == [[t] for t in new] and texts.ended
    assert seen == (list(range(prompt, prompt + len(new))) if processor else [])
    assert len(rounds[-1][0]) < 6  # cut


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(1, dtype=torch.bool)


def test_default_length_and_generation_config(tiny):
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")
    want = model.generate(**inputs, do_sample=False)
    out = sparrow.generate(model, None, **inputs, do_sample=False, stopping_criteria=StoppingCriteriaList([Never()]))
    assert torch.equal(out.sequences, want)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_low_precision_is_reported(tiny, family):
    model, inputs = tiny(family, 0, None, torch.bfloat16), sample_inputs(family)
    inputs = {k: v.bfloat16() if k.startswith("pixel") else v for k, v in inputs.items()}
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    result = sparrow.compare(model, drafter, **inputs, max_new_tokens=48, eos_token_id=None)
    assert 0.8 <= result.match_rate <= 1 and len(result.mismatches) == round((1 - result.match_rate) * 48)
    for m in result.mismatches:
        assert m.reference != m.ours and m.margin >= 0 and m.margin <= 0.05 * m.max_logit


def test_the_vision_tower_is_part_of_the_prefill(tiny):
    """Whether transformers runs it within the first forward pass, or before it calls our loop."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    hook = model.model.visual.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    try:
        stats = sparrow.generate(model, None, **inputs, max_new_tokens=2, eos_token_id=None).stats
    finally:
        hook.remove()
    assert stats.seconds["prefill"] >= 0.3 and stats.total_seconds >= 0.3
