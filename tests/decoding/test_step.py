"""A round is one static step: it reads nothing on the host, its memory stays, its operators repeat, a graph repeats it.

Each property has a planted violation beside it, which the same check must see.
"""

import copy
import dataclasses
import pickle

import pytest
import torch

import sparrow
from sparrow.decoding import generate as generation
from sparrow.decoding import runner
from sparrow.decoding.loop import read, step
from sparrow.decoding.runner import tensors_of
from sparrow.decoding.stats import NoClock
from sparrow.drafters.text import TextDrafter
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.versions import cache_argument
from sparrow.tree import TreeConfig
from tests.decoding.recorder import Emulated, Recorder, host_reads
from tests.videos import FAMILIES, sample_inputs

SHAPE = TreeConfig(12, 3, 4)
RULES = {
    "greedy": {},
    "sampled": {"do_sample": True, "seed": 3, "top_k": 30, "top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.2},
}
DRAFTERS = {
    "text": {},
    "target positions": {"positions": "target"},
    "MSD + VATA": {"positions": "sequence"},
    "ViSpec": {"visual": "compressed", "positions": "sequence"},
    "plain": None,
}


def drafter_of(model, name):
    options = DRAFTERS[name]
    return None if options is None else sparrow.SparrowDrafter.from_target(Target(model), **options)


class Watched(runner.Rounds):
    """Rounds under the recorder, all of them run: every step but the first, which catches up with the prompt."""

    traces, places, reads = [], [], []

    def __call__(self):
        with host_reads() as reads, Recorder() as recorder:
            step(self.target, self.drafter, self.state, self.shape, NoClock(), self.stops)
        self.run += 1
        self.traces.append(recorder.trace())
        self.places.append({n: getattr(h, a).data_ptr() for n, h, a in tensors_of(self.state)})
        self.reads.append(list(reads))
        return read(self.state)


def watch(monkeypatch, model, drafter, family="qwen2_5_vl", new=14, **options):
    """Decodes; returns what Watched saw of each round, and the tokens."""
    for seen in (Watched.traces, Watched.places, Watched.reads):
        seen.clear()
    monkeypatch.setattr(generation, "Rounds", Watched)
    tree = None if drafter is None else SHAPE
    inputs = sample_inputs(family)
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=new, eos_token_id=None, tree=tree, **options)
    assert len(Watched.traces) >= 3
    return out.sequences


def check_static(seen=Watched):
    assert not any(seen.reads), f"host reads in a step: {seen.reads}"
    assert all(places == seen.places[0] for places in seen.places), "a tensor of the state has moved"
    for trace in seen.traces[2:]:
        assert trace == seen.traces[1], [
            pair for pair in zip(trace, seen.traces[1], strict=False) if pair[0] != pair[1]
        ]


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("rules", RULES)
def test_a_step_is_static(tiny, monkeypatch, name, rules):
    model = tiny("qwen2_5_vl")
    ours = watch(monkeypatch, model, drafter_of(model, name), **RULES[rules])
    check_static()
    monkeypatch.undo()
    want = sparrow.generate(
        model, None, **sample_inputs("qwen2_5_vl"), max_new_tokens=14, eos_token_id=None, **RULES[rules]
    )
    assert torch.equal(ours, want.sequences)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_a_step_is_static_in_every_family(tiny, greedy, monkeypatch, family):
    model = tiny(family)
    ours = watch(monkeypatch, model, drafter_of(model, "text"), family)
    check_static()
    assert torch.equal(ours, greedy(model, sample_inputs(family), 14))


# --- planted violations ---


class Reads(TextDrafter):
    def draft(self, state, shape):
        int(state.length[0])
        return super().draft(state, shape)


class Selects(TextDrafter):
    def draft(self, state, shape):
        state.root[state.root >= 0].sum()
        return super().draft(state, shape)


class Moves(TextDrafter):
    def draft(self, state, shape):
        state.draft.cache.lengths = state.draft.cache.lengths + 0
        return super().draft(state, shape)


class Varies(TextDrafter):
    """The catch-up is as long as what was accepted, as it once was."""

    rounds = 0

    def draft(self, state, shape):
        Varies.rounds += 1
        torch.arange(Varies.rounds)
        return super().draft(state, shape)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Reads, "_local_scalar_dense.* reads on the host"), (Selects, "reads on the host"), (Moves, "has moved"),
     (Varies, "arange")],
)  # fmt: skip
def test_violations_are_seen(tiny, monkeypatch, kind, message):
    model = tiny("qwen2_5_vl")
    drafter = drafter_of(model, "text")
    monkeypatch.setattr(type(drafter), "in_loop", lambda self, target, tree: (kind(drafter), tree))
    with pytest.raises(AssertionError, match=message):
        watch(monkeypatch, model, drafter)
        check_static()


def test_a_read_that_no_operator_shows_is_seen(tiny, monkeypatch):
    """Tensor.tolist() goes past a dispatch mode."""
    model = tiny("qwen2_5_vl")
    real = TargetCache.commit
    monkeypatch.setattr(TargetCache, "commit", lambda self, path, *args: (path.tolist(), real(self, path, *args)))
    watch(monkeypatch, model, None)
    with pytest.raises(AssertionError, match=r"host reads in a step: .*tolist"):
        check_static()


def test_an_overfull_cache_sets_the_error_word():
    """Lengths that only the device knows; the rows stay inside the memory."""
    cache = TargetCache(1, 8)
    rows = torch.ones(1, 1, 5, 4)
    cache.update(rows, rows, 0)
    error = torch.zeros(1, dtype=torch.int32)
    with cache.appending(3, error):
        cache.update(rows[:, :, :3] + 1, rows[:, :, :3], 0)
    assert error.item() == 0 and cache.buffer[0, 0, 0, 0, :, 0].tolist() == [1.0] * 5 + [2.0] * 3
    cache.lengths.fill_(6)
    with cache.appending(3, error):
        cache.update(rows[:, :, :3], rows[:, :, :3], 0)
    assert error.item() == 2
    with pytest.raises(ValueError, match="the cache holds 8 rows, a verify pass needs 9"), cache.appending(4):
        pass


# --- captured and replayed ---


@pytest.fixture
def emulated(monkeypatch):
    """CPU rounds are captured by a recorder; the graphs made."""
    monkeypatch.setitem(runner.GRAPHS, "cpu", Emulated)
    Emulated.made.clear()
    runner._rooms.clear()
    yield Emulated.made
    runner._rooms.clear()


def decode(model, drafter, inputs, new=14, **options):
    tree = None if drafter is None else SHAPE
    return sparrow.generate(model, drafter, **inputs, max_new_tokens=new, eos_token_id=None, tree=tree, **options)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_replayed_rounds_give_the_same_tokens(tiny, emulated, name, rules):
    """Also in the calls that follow, with other prompts, seeds and lengths: one capture serves all."""
    model = tiny("qwen2_5_vl")
    drafter = drafter_of(model, name)
    for seed, videos, new in ((0, 1, 14), (1, 1, 20), (2, 2, 9)):
        inputs, options = sample_inputs("qwen2_5_vl", seed=seed, videos=videos), dict(RULES[rules])
        if rules == "sampled":
            options["seed"] = seed
        out = decode(model, drafter, inputs, new, **options)
        want = decode(model, drafter, inputs, new, **options, capture=False)
        assert torch.equal(out.sequences, want.sequences) and out.stats.emitted == want.stats.emitted
        assert out.stats.seconds["replay"] > 0 and "replay" not in want.stats.seconds
        replayed = emulated[0].replays
        del out, want
    assert len(emulated) == 1 and replayed >= 6


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_replayed_rounds_in_every_family(tiny, greedy, emulated, family):
    model, inputs = tiny(family), sample_inputs(family)
    out = decode(model, drafter_of(model, "text"), inputs)
    assert torch.equal(out.sequences, greedy(model, inputs, 14)) and emulated[0].replays >= 2


def test_a_replay_that_is_no_repetition_is_seen(tiny, emulated, monkeypatch):
    """A number that is fixed at the capture and should not be: the tokens are others."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    want = decode(model, None, inputs).sequences
    real = TargetCache.appending

    def fixed_rows(self, nodes, error=None):
        self.lengths = self.lengths * 0 + self.layer_length(0)
        return real(self, nodes, error)

    runner._rooms.clear()
    monkeypatch.setattr(TargetCache, "appending", fixed_rows)
    assert not torch.equal(decode(model, None, inputs).sequences, want)


def test_a_returned_cache_is_the_callers(tiny, greedy, emulated):
    """The next call leaves it alone, and takes its memory only when it is gone. transformers goes on from it."""
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")
    first = decode(model, None, inputs)
    rows = first.cache.buffer[..., : first.cache.get_seq_length(), :].clone()
    second = decode(model, None, sample_inputs("llava_onevision", seed=5))
    assert len(emulated) == 2 and second.cache.buffer.data_ptr() != first.cache.buffer.data_ptr()
    assert torch.equal(first.cache.buffer[..., : rows.shape[-2], :], rows)
    place = first.cache.buffer.data_ptr()
    ids = first.sequences
    more = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None,
        **{cache_argument(model): first.cache},
    )  # fmt: skip
    assert torch.equal(more, greedy(model, inputs, 19))
    del first, more
    third = decode(model, None, sample_inputs("llava_onevision", seed=6))
    assert len(emulated) == 2 and third.cache.buffer.data_ptr() == place
    (rooms,) = runner._rooms.values()
    assert len(rooms) == 2 and not any(room.idle for room in rooms)
    with pytest.raises(RuntimeError, match="this memory holds another sequence"):
        rooms[0].lend(Target(model))
    del second, third
    assert all(room.idle for room in rooms)


def test_a_copied_cache_stands_alone(tiny):
    """copy.deepcopy, and pickle: its layers are its own."""
    out = decode(tiny("llava_onevision"), None, sample_inputs("llava_onevision"))
    rows = torch.ones(1, 2, 1, 16)
    for other in (copy.deepcopy(out.cache), pickle.loads(pickle.dumps(out.cache))):
        length = out.cache.get_seq_length()
        other.update(rows, rows, 0)
        assert (out.cache.get_seq_length(), other.get_seq_length()) == (length, length + 1)
        assert torch.equal(other.buffer[0, 0, :, :, length], rows[:, :, 0])
        assert not torch.equal(out.cache.buffer[0, 0, :, :, length], rows[:, :, 0])


def test_captured_memory_does_not_move(tiny, emulated, monkeypatch):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    tried = []

    def grow(tokens, accepted, seconds):
        cache = rounds[0].state.cache
        if cache.fixed and not tried:
            with pytest.raises(
                RuntimeError, match=r"captured rounds use the cache's 1024 rows, it cannot get 5000 now"
            ):
                cache.reserve(5000)
            tried.append(True)

    rounds = []

    class Kept(runner.Rounds):
        def __init__(self, *args):
            super().__init__(*args)
            rounds.append(self)

    monkeypatch.setattr(generation, "Rounds", Kept)
    out = decode(model, None, inputs, on_round=grow)
    assert tried and not out.cache.fixed
    out.cache.reserve(5000)
    assert out.cache.buffer.shape[4] == 5000


def test_what_is_not_captured(tiny, emulated):
    """Host-side drafters and processors, hooks, and whoever does not want it."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    decode(model, None, inputs, capture=False)
    decode(model, None, inputs, do_sample=True, min_p=0.05, seed=1)
    sparrow.generate(model, sparrow.SpecVLM(keep=0.3), **inputs, max_new_tokens=9, eos_token_id=None)
    hook = model.model.language_model.layers[0].register_forward_hook(lambda *args: None)
    decode(model, None, inputs)
    hook.remove()
    assert not emulated
    decode(model, None, inputs)
    assert len(emulated) == 1


def test_weights_that_moved_are_captured_anew(emulated):
    from sparrow.targets.tiny import tiny_target

    model, inputs = tiny_target("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    before = decode(model, None, inputs).sequences
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # in place: the captured round reads it where it is
        other = decode(model, None, inputs).sequences
        assert len(emulated) == 1 and not torch.equal(other, before)
        model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight)
    assert torch.equal(decode(model, None, inputs).sequences, before)
    assert len(emulated) == 2 and len(runner._rooms[model]) == 1


def test_a_few_memories_wait(tiny, emulated):
    """Of buckets nobody asks for, the last used ones."""
    model = tiny("llava_onevision")
    inputs = sample_inputs("llava_onevision", videos=0)
    for new in (900, 2000, 3000, 900):
        decode(model, None, inputs | {"input_ids": inputs["input_ids"][:, :8]}, new, stopping_criteria=[Stop(20)])
    assert [room.capacity for room in runner._rooms[model]] == [3072, 1024]
    assert len(emulated) == 4


@dataclasses.dataclass
class Stop:
    length: int

    def __call__(self, ids, scores):
        return ids.shape[1] >= self.length
