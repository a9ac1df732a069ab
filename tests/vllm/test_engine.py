"""In vLLM's engine: greedy output is vLLM's own without a drafter, whatever the engine does with a request."""

import pathlib

import pytest
import torch
import transformers

import sparrow
from sparrow.miniature.shipped import DEMO
from sparrow.video import load_settings, load_video, prepare
from tests.vllm.cases import BATCH, CASES, DRAFTER, GREEDY, SHORT, SINGLE, TARGET, asked, clip, drafting, run, tokens
from tests.vllm.split import widen_drafter, widen_target

pytestmark = pytest.mark.skipif(not asked(), reason="vLLM has an environment of its own: `make test-vllm`")
FEW = {"cases": CASES[1:], "sampling": GREEDY}
V2 = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


@pytest.fixture
def plain(without):
    """vLLM without speculation."""
    return without[0]


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    """One engine: each case alone, all twice at once, all but the first alone, and some at once with short answers."""
    return run(tmp_path_factory.mktemp("drafted"), [SINGLE, BATCH, FEW, SHORT], **drafting())


def accepted(one) -> float:
    """Tokens per drafted step, as vLLM counts them."""
    return 1 + one["metrics"]["accepted"] / one["metrics"]["drafts"]


def test_single_and_batched(plain, drafted):
    single, batch, *_ = drafted
    assert tokens(single) == plain
    assert tokens(batch) == [*plain, *plain[::-1]]
    assert accepted(single) > 2.5  # the shipped drafter, not just any
    # Each case came twice, in other company: the same drafts.
    assert batch["metrics"]["accepted"] == 2 * single["metrics"]["accepted"]
    assert batch["metrics"]["drafts"] == 2 * single["metrics"]["drafts"]


def test_accepted_length_is_the_own_loops(drafted):
    """Numbered as vLLM numbers, drafted as vLLM can: a chain of four."""
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
        images = list(clip(TARGET, 8)[0][: case.get("images", 0)])
        inputs = prepare(settings, tokenizer, case["prompt"], videos, images=images)
        out = sparrow.generate(
            model, drafter, **inputs, do_sample=False, max_new_tokens=160, tree="4-4-1", positions="reference"
        )
        ours.append(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
        emitted += out.stats.emitted
    assert tokens(drafted[0]) == ours
    assert sum(emitted) / len(emitted) == pytest.approx(accepted(drafted[0]), rel=0.02)


def share(one) -> float:
    """Drafts that were accepted of those that were verified."""
    return one["metrics"]["accepted"] / one["metrics"]["drafted"]


def same_drafts(one, other) -> None:
    for name in ("drafts", "accepted"):
        assert one["metrics"][name] == other["metrics"][name]


def test_prefix_cache(plain, drafted, tmp_path):
    """Hits in later requests and in the same step; the drafts are those of a run without hits, to the last one."""
    first, again, batch = run(tmp_path, [SINGLE, SINGLE, BATCH], **drafting(), enable_prefix_caching=True)
    assert tokens(first) == tokens(again) == plain and tokens(batch) == [*plain, *plain[::-1]]
    assert all(cached >= size - 33 for cached, size in zip(again["cached"], again["prompts"], strict=True))
    same_drafts(first, drafted[0])
    same_drafts(again, drafted[0])
    same_drafts(batch, drafted[1])


@pytest.mark.slow
def test_chunked_prefill(plain, drafted, tmp_path):
    # Without the first: vLLM takes no video with more tokens than a step, or than one of 14 frames.
    together = {"cases": CASES[1:] * 2, "sampling": GREEDY, "together": True}
    alone, many = run(tmp_path, [FEW, together], **drafting(), max_num_batched_tokens=128, enable_prefix_caching=True)
    assert max(alone["prompts"]) > 3 * 128
    assert tokens(alone) == plain[1:] and tokens(many) == plain[1:] * 2
    same_drafts(alone, drafted[2])


def test_the_v2_runner(drafted, tmp_path):
    """vLLM's own V2 runner, whose Triton kernels are interpreted: text, videos, images; the V1 runner's drafts."""
    (one,) = run(tmp_path, [SHORT], env=V2, **drafting())
    assert tokens(one) == tokens(drafted[3])
    same_drafts(one, drafted[3])


@pytest.mark.slow
def test_preemption(plain, tmp_path):
    """Blocks for both prompts, and not for what they go on to say (a shared prefix would leave enough)."""
    order = (4, 4)
    together = {"cases": [CASES[i] for i in order], "sampling": GREEDY, "together": True}
    options = {"num_gpu_blocks_override": 34, "max_model_len": 768, "max_num_batched_tokens": 1024}
    (one,) = run(tmp_path, [together], **drafting(), **options)
    assert one["metrics"]["preemptions"] > 0
    assert tokens(one) == [plain[i] for i in order]


@pytest.mark.slow
def test_an_engine_process_of_its_own_short_pools_and_chains(plain, tmp_path):
    """As `vllm serve` runs it; most of these requests outgrow their pool, and no unlikely draft is verified."""
    together = {"cases": CASES[1:], "sampling": GREEDY, "together": True}
    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    every, likely = (run(tmp_path, [together], env=env, **drafting(text_rows=90, least=x))[0] for x in (0, 0.3))
    assert tokens(every) == tokens(likely) == plain[1:]
    steps = sum(map(len, plain[1:])) - every["metrics"]["accepted"]
    assert every["metrics"]["drafts"] < 0.9 * steps  # those that outgrew it drafted nothing
    assert likely["metrics"]["drafts"] < likely["metrics"]["drafted"] < 3.9 * likely["metrics"]["drafts"]
    assert share(likely) > share(every)  # unlikely drafts, which were left out, are refused more often


@pytest.mark.slow
@pytest.mark.parametrize("slow", [4, 0])
def test_the_faster_way_is_taken(plain, tmp_path, slow):
    """Steps with drafts, or without, take a second more: 16 of them are tried, then 2 % of the time; same answers."""
    (one,) = run(tmp_path, [SINGLE], env={"SPARROW_SLOWED": str(slow)}, **drafting(adaptive=True))
    assert tokens(one) == plain
    assert 16 <= one["slowed"] <= 16 + 0.02 * one["seconds"] + len(CASES)  # what the last step drafts, no step verifies
    drafts, steps = one["metrics"]["drafts"], sum(map(len, plain)) - len(plain) - one["metrics"]["accepted"]
    assert drafts <= one["slowed"] if slow else drafts >= steps - one["slowed"] > 2 * one["slowed"]


@pytest.mark.slow
def test_two_ranks_accept_what_one_does(tmp_path):
    """A trained pair that splits: the shipped one, widened; the tower runs whole on every rank."""
    target, drafter = tmp_path / "target", tmp_path / "drafter"
    widen_drafter(pathlib.Path(DRAFTER), drafter, widen_target(pathlib.Path(TARGET), target))
    together = {"cases": CASES[1:5], "sampling": GREEDY, "together": True}
    one, two = (
        run(
            tmp_path, [together], str(target), **drafting(str(drafter)), tensor_parallel_size=ranks,
            mm_encoder_tp_mode="data",
        )[0]
        for ranks in (1, 2)
    )  # fmt: skip
    assert tokens(one) == tokens(two)
    same_drafts(one, two)
    assert accepted(two) > 2.5
