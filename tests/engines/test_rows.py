"""Drafts in an engine's steps are those of one forward over the whole sequence, whatever the engine did in between."""

import pytest
import torch

from sparrow.engines.chain import check_drafter, worth_verifying
from sparrow.engines.store import RowStore, columns_per_token
from tests.engines.simulated import VIDEO, E, Engine, V, tiny_drafter

CLIP = [VIDEO] * 9
PROMPT = [10, 11, 12, *CLIP, 13, 14, 15, 16]


def test_append_writes_what_extend_writes():
    drafter, k = tiny_drafter(), 5
    ids, hidden = torch.randint(V, (1, k)), torch.randn(k, E)
    index, place = torch.tensor([[-1, 0, 1, 2, 4]], dtype=torch.int32), torch.arange(3, 3 + k)[None]
    want, got = torch.zeros(2, 2, 12, 1, 8), torch.zeros(2, 2, 12, 1, 8)
    drafter.extend(ids, index, hidden, place, *want[:, :1], torch.tensor([2], dtype=torch.int32), tree_start=0)
    slots = torch.tensor([2, 3, 4, -1, 6], dtype=torch.int32)
    drafter.append(ids[0], index[0], hidden, place[0], slots, *got)
    assert torch.equal(got[:, 0, [2, 3, 4, 6]], want[:, 0, [2, 3, 4, 6]]) and want[:, 0, 5].any()
    assert not got[:, 0, 5].any() and not got[:, 1].any()


@pytest.mark.parametrize("numbering", ["text", "sequence"])
def test_one_request(numbering):
    engine = Engine(tiny_drafter(positions=numbering))
    engine.add(0, PROMPT)
    for share in (16, 0, 0, 0, 0, 0):
        engine.step({0: share})
    assert engine.checked == 6


def test_prompts_in_chunks():
    """Chunks that end within text, within a video, and at its edges; one beside a request that drafts."""
    engine = Engine(tiny_drafter())
    engine.add(0, PROMPT)
    engine.add(1, [20, *CLIP, 21, *CLIP, 22])
    engine.step({0: 2})
    engine.step({0: 1, 1: 1})  # up to the video
    engine.step({0: 5, 1: 9})
    engine.step({1: 3, 0: 4})
    engine.step({0: 4, 1: 8})
    for _ in range(4):
        engine.step({1: 1, 0: 1})
    assert engine.checked == 10


def test_a_prompt_that_starts_or_ends_with_a_video():
    engine = Engine(tiny_drafter())
    for name, prompt in enumerate([[*CLIP, 9], [9, *CLIP], CLIP]):
        engine.add(name, prompt)
    for _ in range(4):
        engine.step({0: 99, 1: 99, 2: 99})
    assert engine.checked == 12


def test_a_prefix_from_the_cache():
    engine = Engine(tiny_drafter())
    engine.add(0, PROMPT)
    engine.step({0: 99})
    engine.step({0: 0})
    engine.add(1, [*PROMPT, 30, 31])
    engine.step({1: 99, 0: 0})
    assert engine.requests[1].prompt - 1 > 16 - 4 and engine.requests[1].blocks[0] == engine.requests[0].blocks[0]
    engine.add(2, [*engine.requests[0].tokens, 33])  # the conversation goes on: generated tokens are cached, too
    engine.step({2: 99})
    for _ in range(3):
        engine.step({0: 0, 1: 0, 2: 0})
    assert engine.checked == 2 + 2 + 1 + 9


def test_a_prefix_that_the_same_step_computes():
    """The third request needs blocks of the second, which needs blocks of the first; all in one step, in any order."""
    engine = Engine(tiny_drafter())
    engine.add(0, PROMPT)
    engine.add(1, [*PROMPT, 30, 31, 32, 33, 34])
    engine.add(2, [*PROMPT, 30, 31, 32, 33, 34, 35, 36, 37])
    engine.step({0: 99, 1: 99, 2: 99})
    assert [len(engine.requests[n].blocks) for n in range(3)] == [4, 6, 6]
    assert engine.requests[2].blocks[4] == engine.requests[1].blocks[4]
    for _ in range(2):
        engine.step({2: 0, 0: 0, 1: 0})
    assert engine.checked == 9


def test_a_preempted_request_comes_back():
    engine = Engine(tiny_drafter(), slots=2)
    for name in (0, 1):
        engine.add(name, [*PROMPT[:-1], 40 + name])
        engine.step({name: 99})
    engine.step({0: 0, 1: 0})
    engine.preempt(0)
    engine.add(2, [50, 51, 52])
    engine.step({1: 0, 2: 99})
    engine.preempt(2)
    engine.step({1: 0, 0: 6})  # in chunks, from cached blocks, in another place
    engine.step({1: 0, 0: 99})
    engine.step({1: 0, 0: 99})
    assert engine.checked >= 10 and engine.slots[0] == 0
    engine.preempt(1, keeps_slot=True)
    engine.step({0: 0, 1: 3})
    engine.step({0: 0, 1: 99})
    assert engine.requests[1].drafts and engine.requests[1].blocks


def test_text_beyond_the_pool_drafts_nothing_and_harms_nobody():
    engine = Engine(tiny_drafter(), capacity=9)
    engine.add(0, PROMPT)
    engine.add(1, [*PROMPT, 17, 18, 19, 20])  # longer from the first
    engine.add(2, [50])  # in the place behind it
    engine.step({0: 99, 1: 99, 2: 1})
    assert [len(engine.requests[n].drafts) for n in range(3)] == [3, 0, 3]
    for _ in range(2):
        engine.step({0: 0, 1: 0, 2: 0})
    assert [len(engine.requests[n].drafts) for n in range(3)] == [0, 0, 3]
    engine.add(3, [*PROMPT[:12], 41])  # a prefix of what was too long
    engine.step({3: 99})
    assert engine.requests[3].drafts


def test_steps_without_drafts_leave_no_gap():
    engine = Engine(tiny_drafter())
    engine.add(0, PROMPT)
    for length in (0, 0, 3, 0, 0, 2):
        engine.length = length
        engine.step({0: 99})
        assert len(engine.requests[0].drafts) == length
    assert engine.checked == 2


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule(seed):
    engine = Engine(tiny_drafter(), slots=3, blocks=400, capacity=80, seed=seed)
    draw, added = engine.draw, 0
    prompts = [PROMPT, [*PROMPT, 30, 31, 32, 33, 34], [9, *CLIP, *CLIP, 21], [33] * 10]
    for _ in range(40):
        if engine.slots and draw(6) == 0:
            engine.preempt(list(engine.slots)[draw(len(engine.slots))])
        for name in [n for n, r in engine.requests.items() if len(r.tokens) > r.prompt + 12]:
            if name in engine.slots:
                engine.preempt(name)
            del engine.requests[name]
        if len(engine.requests) < 3:
            engine.add(added, [*prompts[draw(4)], *([50] * draw(5))])
            added += 1
        chosen = [name for name in engine.requests if draw(4)]
        if chosen:
            engine.step({name: 1 + draw(12) for name in chosen})
    assert engine.checked > 30 and added > 4


def test_the_store_says_what_it_takes():
    columns = columns_per_token(1, 8, E, 4)
    assert columns == 2 * 8 + 6
    with pytest.raises(ValueError, match="tokens a divisor of 4"):
        RowStore(torch.zeros(5, 1, 3, columns), 4, 1, 8, E)
    with pytest.raises(ValueError, match="must have 22 columns, got 20"):
        RowStore(torch.zeros(5, 1, 4, columns - 2), 4, 1, 8, E)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(positions="target"), "positions must be text or sequence"),
        (dict(visual="rows", positions="sequence"), "visual=rows"),
        (dict(fused_layers=(1,)), "fused_layers=\\(1,\\)"),
        (dict(num_layers=2), "must have one layer, got num_layers=2"),
        (dict(hidden_layer=1), "hidden_layer must be 2 .* got 1"),
    ],
)
def test_drafters_that_read_more_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_drafter(tiny_drafter(**overrides))


def test_drafts_that_are_worth_verifying():
    chances = torch.tensor([[0.9, 0.9, 0.9], [0.4, 1.0, 1.0], [0.9, 0.1, 1.0], [1.0, 1.0, 1.0]])
    assert worth_verifying(chances.log(), 0.5).tolist() == [3, 0, 1, 3]
    assert worth_verifying(chances.log(), 0.8).tolist() == [2, 0, 1, 3]
    assert worth_verifying(chances.log(), 0.0).tolist() == [3, 3, 3, 3]
    assert worth_verifying(torch.empty(0, 3), 0.5).tolist() == []
