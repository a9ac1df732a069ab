"""One model for several threads: calls wait for each other; the model keeps no trace of it."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch

import sparrow
from sparrow.evaluation.systems import LOOKUP, PLAIN, TRANSFORMERS, run
from sparrow.targets import borrow
from sparrow.targets.adapter import Target
from sparrow.targets.borrow import lock_of
from sparrow.targets.teacher import teacher_states
from sparrow.targets.tiny import tiny_target
from sparrow.targets.versions import cache_argument
from tests.decoding.test_path_invariance import through_modules
from tests.videos import sample_inputs


def together(*calls):
    """Runs each call in a thread of its own, all at once; their results, or what they raised."""
    results, ready = [None] * len(calls), threading.Barrier(len(calls))

    def work(at):
        ready.wait()
        try:
            results[at] = calls[at]()
        except Exception as error:
            results[at] = error

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    return results


def test_one_model_from_several_threads(tiny, greedy):
    """Drafters, plain decoding, refused values and faults in mid-round, side by side."""
    model, inputs = tiny("qwen2_5_vl", 3), sample_inputs("qwen2_5_vl")
    other = sample_inputs("qwen2_5_vl", videos=2, seed=1)
    want, more = greedy(model, inputs, 16), greedy(model, other, 16)
    model.model.language_model.layers[1].train()
    text, target = model.config.get_text_config(), Target(model)
    before = text._attn_implementation, [m.training for m in model.modules()], [len(vars(m)) for m in model.modules()]

    def call(given, drafter, **options):
        return lambda: (
            sparrow.generate(model, drafter, **given, max_new_tokens=16, **{"eos_token_id": None, **options}).sequences
        )

    def broken(*args):
        raise ArithmeticError("mine")

    calls = []
    for _ in range(2):
        drafter = sparrow.SparrowDrafter.from_target(target)
        calls += [call(inputs, None), call(other, drafter), call(inputs, sparrow.SpecVLM()), call(other, None)]
        calls += [call(inputs, drafter, on_round=broken), call(inputs, None, do_sample=True, temperature=1e-40)]
    for at, got in enumerate(together(*calls)):
        kind = at % 6
        if kind < 4:
            assert torch.equal(got, more if kind % 2 else want), got
        else:
            assert isinstance(got, ArithmeticError if kind == 4 else ValueError), got
    after = text._attn_implementation, [m.training for m in model.modules()], [len(vars(m)) for m in model.modules()]
    assert before == after
    model.eval()
    assert torch.equal(greedy(model, inputs, 16), want)


def test_all_that_runs_a_model_waits(tiny, greedy):
    """compare, the evaluation's runs, transformers' own inside them, and the teacher, beside generate."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    options = {"max_new_tokens": 12, "eos_token_id": None, "do_sample": False}
    want, prompt = greedy(model, inputs, 12), inputs["input_ids"].shape[1]
    answer = want[0, prompt:].tolist()
    states = teacher_states(Target(model), inputs, want[0, prompt:], [0, 4]).states[4]

    def run_by(system):
        return lambda: run(system, model, None, inputs, options, 0).tokens

    def ours():
        return sparrow.generate(model, None, **inputs, **options).sequences[0, prompt:].tolist()

    calls = [run_by(TRANSFORMERS), run_by(PLAIN), run_by(LOOKUP), ours]
    calls += [lambda: sparrow.compare(model, None, **inputs, **options).identical]
    calls += [lambda: torch.equal(teacher_states(Target(model), inputs, want[0, prompt:], [0, 4]).states[4], states)]
    assert together(*calls, *calls) == [*[answer] * 4, True, True] * 2


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_a_call_inside_a_call(tiny, family):
    """It answers another prompt; the outer call, and what goes on from its cache, are what they would be alone."""
    model, inputs, other = tiny(family), sample_inputs(family), sample_inputs(family, seed=1, videos=2)
    options = {"max_new_tokens": 6, "eos_token_id": None}
    expected, inner = (sparrow.generate(model, None, **given, **options).sequences for given in (inputs, other))
    inside = []

    def again(*args):
        inside.append(sparrow.generate(model, None, **other, **options).sequences)

    out = sparrow.generate(model, None, **inputs, **options, on_round=again)
    assert torch.equal(out.sequences, expected) and all(torch.equal(tokens, inner) for tokens in inside)
    with_cache = {cache_argument(model): out.cache}
    on = model.generate(out.sequences, **with_cache, do_sample=False, **options)
    fresh = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=None)
    assert torch.equal(on, fresh)


def test_a_call_inside_a_call_of_a_changed_model_is_an_error_not_a_wait(tiny):
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")

    def again(*args):
        sparrow.generate(model, None, **inputs, max_new_tokens=2)

    with through_modules(model), pytest.raises(RuntimeError, match="only sparrow's decode loop may call it now"):
        sparrow.generate(model, None, **inputs, max_new_tokens=4, eos_token_id=None, on_round=again)


def test_a_lock_goes_with_its_model():
    model = tiny_target("llava_onevision")
    sparrow.generate(model, None, **sample_inputs("llava_onevision", videos=0), max_new_tokens=2)
    lock, kept = lock_of(model), weakref.ref(model)
    assert lock_of(model) is lock
    twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert lock_of(twin) is not lock and lock_of(again) is not lock
    gc.collect()  # models of earlier tests
    number = len(borrow._locks)
    del model
    gc.collect()
    assert kept() is None and len(borrow._locks) == number - 1
