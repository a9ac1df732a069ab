"""In vLLM's engine: greedy output is vLLM's own without a drafter, whatever the engine does with a request."""

import pathlib

import pytest
import torch
import transformers

import sparrow
from sparrow.miniature.shipped import DEMO
from sparrow.video import load_settings, load_video, prepare
from tests.vllm.cases import CASES, DRAFTER, GREEDY, TARGET, asked, run, speculating, tokens
from tests.vllm.split import widen_drafter, widen_target

pytestmark = pytest.mark.skipif(not asked(), reason="vLLM has an environment of its own: `make test-vllm`")
SINGLE = {"cases": CASES, "sampling": GREEDY}
BATCH = {"cases": [*CASES, *CASES[::-1]], "sampling": GREEDY, "together": True}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """vLLM without speculation."""
    (one,) = run(tmp_path_factory.mktemp("plain"), [SINGLE])
    assert sum(map(len, tokens(one))) > 300 and not one["metrics"].get("drafts")
    return tokens(one)


@pytest.fixture(scope="module")
def drafting(tmp_path_factory):
    return run(tmp_path_factory.mktemp("drafting"), [SINGLE, BATCH], **speculating())


def accepted(one) -> float:
    """Tokens per drafted step, as vLLM counts them."""
    return 1 + one["metrics"]["accepted"] / one["metrics"]["drafts"]


def test_single_and_batched(plain, drafting):
    single, batch = drafting
    assert tokens(single) == plain
    assert tokens(batch) == [*plain, *plain[::-1]]
    assert accepted(single) > 2.5  # the shipped drafter, not just any
    # Each case came twice, in other company: the same drafts.
    assert batch["metrics"]["accepted"] == 2 * single["metrics"]["accepted"]
    assert batch["metrics"]["drafts"] == 2 * single["metrics"]["drafts"]


def test_accepted_length_is_the_own_loops(drafting):
    """One video a prompt; numbered as vLLM numbers, drafted as vLLM can: a chain of four."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(TARGET, dtype=torch.float32).eval()
    tokenizer, settings = transformers.AutoTokenizer.from_pretrained(TARGET), load_settings(TARGET)
    drafter = sparrow.SparrowDrafter.from_pretrained(DRAFTER).place(model.device, model.dtype)
    emitted, ours = [], []
    for case in CASES:
        frames = case["frames"]
        if isinstance(frames, list):
            videos = [load_video(DEMO, settings, num_frames=n) for n in frames]
        else:
            videos = [load_video(DEMO, settings, num_frames=frames)] if frames else []
        inputs = prepare(settings, tokenizer, case["prompt"], videos)
        out = sparrow.generate(
            model, drafter, **inputs, do_sample=False, max_new_tokens=160, tree="4-4-1", positions="reference"
        )
        ours.append(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
        emitted += out.stats.emitted
    assert tokens(drafting[0]) == ours
    assert sum(emitted) / len(emitted) == pytest.approx(accepted(drafting[0]), rel=0.02)


def same_drafts(one, other) -> None:
    for name in ("drafts", "accepted"):
        assert one["metrics"][name] == other["metrics"][name]


def test_prefix_cache(plain, drafting, tmp_path):
    """Hits in later requests and in the same step; the drafts are those of a run without hits, to the last one."""
    first, again, batch = run(tmp_path, [SINGLE, SINGLE, BATCH], **speculating(), enable_prefix_caching=True)
    assert tokens(first) == tokens(again) == plain and tokens(batch) == [*plain, *plain[::-1]]
    assert all(cached >= size - 33 for cached, size in zip(again["cached"], again["prompts"], strict=True))
    same_drafts(first, drafting[0])
    same_drafts(again, drafting[0])
    same_drafts(batch, drafting[1])


def test_chunked_prefill(plain, tmp_path):
    # Without the first: vLLM takes no video with more tokens than a step, or than one of 14 frames.
    small = [{"cases": CASES[1:], "sampling": GREEDY}, {"cases": CASES[1:] * 2, "sampling": GREEDY, "together": True}]
    alone, together = run(
        tmp_path, small, **speculating(), max_num_batched_tokens=128, enable_prefix_caching=True
    )  # fmt: skip
    assert max(alone["prompts"]) > 3 * 128
    assert tokens(alone) == plain[1:] and tokens(together) == plain[1:] * 2
    (whole,) = run(tmp_path, small[:1], **speculating())
    same_drafts(alone, whole)


def test_preemption(plain, tmp_path):
    """Blocks for both prompts, and not for what they go on to say (a shared prefix would leave enough)."""
    order = (4, 4)
    together = {"cases": [CASES[i] for i in order], "sampling": GREEDY, "together": True}
    options = {"num_gpu_blocks_override": 34, "max_model_len": 768, "max_num_batched_tokens": 1024}
    (one,) = run(tmp_path, [together], **speculating(), **options)
    assert one["metrics"]["preemptions"] > 0
    assert tokens(one) == [plain[i] for i in order]


def test_an_engine_process_of_its_own_short_pools_and_chains(plain, tmp_path):
    """As `vllm serve` runs it; most of these requests outgrow their pool, and no unlikely draft is verified."""
    together = {"cases": CASES[1:], "sampling": GREEDY, "together": True}
    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    (one,) = run(tmp_path, [together], env=env, **speculating(text_rows=90, least=0.3))
    assert tokens(one) == plain[1:]
    steps = sum(map(len, plain[1:])) - one["metrics"]["accepted"]
    assert one["metrics"]["drafts"] < 0.9 * steps  # those that outgrew it drafted nothing
    assert one["metrics"]["drafts"] < one["metrics"]["drafted"] < 3.9 * one["metrics"]["drafts"]
    assert one["metrics"]["accepted"] > 0.7 * one["metrics"]["drafted"]


def test_two_ranks_accept_what_one_does(tmp_path):
    """A trained pair that splits: the shipped one, widened; the tower runs whole on every rank."""
    target, drafter = tmp_path / "target", tmp_path / "drafter"
    widen_drafter(pathlib.Path(DRAFTER), drafter, widen_target(pathlib.Path(TARGET), target))
    together = {"cases": CASES[1:5], "sampling": GREEDY, "together": True}
    one, two = (
        run(
            tmp_path, [together], str(target), **speculating(str(drafter)), tensor_parallel_size=ranks,
            mm_encoder_tp_mode="data",
        )[0]
        for ranks in (1, 2)
    )  # fmt: skip
    assert tokens(one) == tokens(two)
    same_drafts(one, two)
    assert accepted(two) > 2.5
