"""A session's answers are those of the whole conversation run from nothing, whatever happened before."""

from dataclasses import replace

import pytest
import torch

import sparrow
from sparrow.decoding import runner
from sparrow.miniature.model import SETTINGS
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import tiny_target
from sparrow.targets.versions import cache_argument
from sparrow.tree import TreeConfig
from tests.decoding.recorder import Emulated
from tests.decoding.talk import Characters, frames_of, settings_of, whole
from tests.pairs import miniature_pair
from tests.videos import FAMILIES

NEW = 8
DRAFTERS = {
    "none": lambda model: None,
    "text": lambda model: sparrow.SparrowDrafter.from_target(Target(model)),
    "specvlm": lambda model: sparrow.SpecVLM(keep=0.5),
}


def session_of(model, family="qwen2_5_vl", drafter="text", trim=False, **options):
    options = {"max_new_tokens": NEW, "eos_token_id": None, **options}
    return sparrow.Session(model, DRAFTERS[drafter](model), settings_of(family), Characters(family, trim), **options)


@pytest.fixture
def talk(tiny, greedy):
    """check(session, text, videos): sends, compares with transformers from nothing; returns the reply."""

    def check(session, text, videos=None, **options):
        reply = session.send(text, videos, **options)
        want = greedy(session.model, whole(session), options.get("max_new_tokens", NEW))
        assert torch.equal(reply.output.sequences, want)
        return reply

    return check


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_turns(tiny, talk, family, drafter):
    """Videos come in the first turn and in a later one; every turn runs its new tokens and the last before them."""
    session, clips = session_of(tiny(family), family, drafter), [frames_of(family, seed) for seed in range(3)]
    ran = talk(session, "What?", clips[0]).output.sequences[0, :-1]
    for text, videos in (("Why is it so?", None), ("And these?", clips[1:]), ("Both", None)):
        reply = talk(session, text, videos)
        ids = reply.output.sequences[0]
        common = int((ran == ids[: len(ran)]).long().cumprod(0).sum())
        assert reply.stats.reused_tokens == common - 1 > 20
        ran = ids[:-1]
    assert len(session.clips) == 3 and [turn.text for turn in session.turns][-1] == "Both"


@pytest.mark.parametrize("new", [1, 2, 9])
def test_answers_of_any_length(tiny, talk, new):
    """One token comes from the prefill alone: the drafter's rows are there all the same."""
    session = session_of(tiny("qwen2_5_vl"))
    for text in ("a", "bc", "d"):
        reply = talk(session, text, None if session.turns else frames_of("qwen2_5_vl", 0), max_new_tokens=new)
    assert reply.stats.reused_tokens > 20


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_template_that_changes_earlier_turns(tiny, talk, family):
    """The answer comes back in parentheses: it is run again, the video is not."""
    session = session_of(tiny(family), family, trim=True)
    first = talk(session, "What?", frames_of(family, 0))
    reply = talk(session, "Why?")
    assert reply.stats.reused_tokens == first.stats.prompt_tokens - 1 > 30


def with_a_second_layer(drafter, target):
    """The drafter, and above its layer another one that hardly changes what comes out."""
    config = replace(drafter.config, num_layers=2)
    both = sparrow.SparrowDrafter(config)
    weights = both.state_dict() | drafter.state_dict()
    for name in ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight"):
        weights[name] = 0.01 * weights[name]
    both = sparrow.SparrowDrafter.of(config, weights).place(target.device, drafter.weight.dtype)
    both.attach(target)
    return both


@pytest.mark.parametrize("positions", ["text", "target", "sequence", "two layers"])
def test_the_drafter_goes_on_as_from_nothing(positions):
    """Its rows are those of a fresh run: the same drafts are accepted, round by round, and a video comes later, too."""
    model, tokenizer, drafter = miniature_pair()
    if positions == "two layers":
        drafter = with_a_second_layer(drafter, Target(model))
    else:
        drafter.config = replace(drafter.config, positions=positions)
    options = {"max_new_tokens": 40, "eos_token_id": None, "tree": TreeConfig(12, 4, 3)}
    session = sparrow.Session(model, drafter, SETTINGS, tokenizer, **options)
    clip = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    accepted = 0
    for text in ("Describe the video in detail.", "How many shapes are there?", "What colour is it?"):
        reply = session.send(text, None if len(session.turns) == 1 else clip)
        fresh = sparrow.generate(model, drafter, **whole(session), **options)
        assert torch.equal(reply.output.sequences, fresh.sequences)
        assert reply.stats.accepted == fresh.stats.accepted
        assert reply.stats.emitted == fresh.stats.emitted
        accepted += sum(reply.stats.accepted)
    assert accepted > 20 and reply.stats.reused_tokens > 60


def test_sampled(tiny):
    """The noise is that of the places in the whole conversation."""
    session = session_of(tiny("qwen2_5_vl"), do_sample=True, temperature=1.3, seed=11)
    for text in ("What?", "Why?", "When?"):
        reply = session.send(text, None if session.turns else frames_of("qwen2_5_vl", 0))
        fresh = sparrow.generate(
            session.model, session.drafter, **whole(session), max_new_tokens=NEW, eos_token_id=None, do_sample=True,
            temperature=1.3, seed=11,
        )  # fmt: skip
        assert torch.equal(reply.output.sequences, fresh.sequences)
    assert reply.stats.reused_tokens > 30


def test_undo_and_branch(tiny, talk):
    session = session_of(tiny("llava_onevision"), "llava_onevision")
    talk(session, "What?", frames_of("llava_onevision", 0))
    talk(session, "Why?")
    answer = session.turns[-1].answer
    other = session.branch()
    assert session.undo().text == "Why?"
    assert talk(session, "Where is it?").stats.reused_tokens > 20
    assert other.turns[-1].answer == answer
    assert talk(other, "When?").stats.reused_tokens > 40  # its rows are its own
    session.undo()
    talk(session, "Why?")
    assert session.turns[-1].answer == answer
    session.undo(), session.undo()
    with pytest.raises(ValueError, match="there is no turn to undo"):
        session.undo()
    talk(session, "No video now")


@pytest.mark.parametrize("family", FAMILIES)
def test_extend(tiny, greedy, talk, family):
    """Pieces of a live video: run as they come, they are videos of the next question."""
    session, clips = session_of(tiny(family), family), [frames_of(family, seed) for seed in range(3)]
    ran = [session.extend(clip) for clip in clips[:2]]
    assert ran[1] < ran[0] + 8
    reply = talk(session, "What?")
    assert reply.stats.prompt_tokens - reply.stats.reused_tokens < 22
    assert session.extend(clips[2]) < 90
    talk(session, "And now?")
    fresh = session_of(tiny(family), family)
    fresh.send("What?", clips[:2])
    assert fresh.turns[0].answer == session.turns[0].answer


def test_extend_with_specvlm(tiny, talk):
    session = session_of(tiny("qwen2_5_vl"), drafter="specvlm")
    session.extend(frames_of("qwen2_5_vl", 0))
    assert talk(session, "What?").stats.reused_tokens > 10


def test_saved_and_loaded(tiny, talk, tmp_path):
    session, model = session_of(tiny("qwen3_vl"), "qwen3_vl"), tiny("qwen3_vl")
    talk(session, "What?", frames_of("qwen3_vl", 0))
    session.extend(frames_of("qwen3_vl", 1))
    session.save(tmp_path / "talk.safetensors")
    parts = (model, session.drafter, session.settings, session.tokenizer)
    loaded = sparrow.Session.load(tmp_path / "talk.safetensors", *parts, **session.options)
    assert loaded.turns[0].answer == session.turns[0].answer and len(loaded.clips) == 2
    reply = talk(loaded, "And this?")
    assert reply.stats.reused_tokens > 50
    assert reply.text == session.send("And this?").text


def test_files_that_are_refused(tiny, tmp_path):
    model, file = tiny("qwen2_5_vl"), tmp_path / "talk.safetensors"
    session = session_of(model)
    session.send("What?", frames_of("qwen2_5_vl", 0))
    session.save(file)
    parts = (session.settings, session.tokenizer)
    with pytest.raises(ValueError, match="was made with another target"):
        sparrow.Session.load(file, tiny("qwen2_5_vl", seed=1), None, *parts)
    with pytest.raises(ValueError, match="was made with another drafter"):
        sparrow.Session.load(file, model, None, *parts)
    with pytest.raises(ValueError, match="was made with another drafter"):
        sparrow.Session.load(file, model, sparrow.SparrowDrafter.from_target(Target(model), output_norm="none"), *parts)
    with pytest.raises(FileNotFoundError):
        sparrow.Session.load(tmp_path / "none", model, session.drafter, *parts)
    data = file.read_bytes()
    for cut in (0, 7, 300, len(data) - 5):
        file.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="is no saved conversation, or cut short"):
            sparrow.Session.load(file, model, session.drafter, *parts)


@pytest.mark.parametrize("where", ["prefill", "answer"])
def test_interrupted(tiny, talk, where):
    """Nothing of the question stays, and the conversation goes on."""
    session = session_of(tiny("qwen2_5_vl"))
    talk(session, "What?", frames_of("qwen2_5_vl", 0))
    talk(session, "Why is he?")
    session.undo()

    class Interrupts:
        puts = 0

        def put(self, value):
            self.puts += 1
            if where == "answer" and self.puts == 4:
                raise KeyboardInterrupt

        def end(self):
            raise AssertionError("it was interrupted")

    def press(*_):
        raise KeyboardInterrupt

    layer = session.target.decoder.layers[2]
    hook = layer.register_forward_hook(press) if where == "prefill" else None
    with pytest.raises(KeyboardInterrupt):
        session.send("Why is it?", frames_of("qwen2_5_vl", 1), streamer=Interrupts())
    if hook is not None:
        hook.remove()
    assert len(session.turns) == 1 and len(session.clips) == 1
    assert talk(session, "Why is he?").stats.reused_tokens > 20  # its rows from before are written over


def test_changed_weights_are_seen(tiny, talk):
    session = session_of(tiny_target("qwen2_5_vl", seed=3), drafter="none")
    talk(session, "What?", frames_of("qwen2_5_vl", 0))
    with torch.no_grad():
        session.target.decoder.layers[1].mlp.down_proj.weight.mul_(1.5)
    assert talk(session, "Why?").stats.reused_tokens == 0


def test_captured_rounds_go_on(tiny, talk, greedy, monkeypatch):
    """As on a GPU: one capture serves the turns, in the session's own memory."""
    monkeypatch.setitem(runner.GRAPHS, "cpu", Emulated)
    Emulated.made.clear(), runner._rooms.clear()
    session = session_of(tiny("qwen2_5_vl"), tree=TreeConfig(12, 3, 4))
    places = set()
    for text in ("What?", "Why?", "When?"):
        reply = talk(session, text, None if session.turns else frames_of("qwen2_5_vl", 0))
        places.add(reply.output.cache.buffer.data_ptr())
    assert len(Emulated.made) == 1 and len(places) == 1 and Emulated.made[0].replays >= 10
    most = reply.output.sequences.shape[1] + 45
    del reply
    end = [lambda ids, _: ids.shape[1] >= most]
    reply = session.send("Much more", max_new_tokens=1100, stopping_criteria=end)  # another memory: the rows move
    new = reply.output.sequences.shape[1] - reply.stats.prompt_tokens
    assert torch.equal(reply.output.sequences, greedy(session.model, whole(session), new))
    assert len(Emulated.made) == 2 and session.memory["cache"] > 2048 * session.memory["bytes_per_token"] - 1
    runner._rooms.clear()


def test_memory(tiny):
    session = session_of(tiny("qwen2_5_vl"))
    assert session.memory == dict.fromkeys(("cache", "used", "bytes_per_token", "draft", "videos"), 0)
    reply = session.send("What?", frames_of("qwen2_5_vl", 0))
    held = session.memory
    assert held["bytes_per_token"] == 4 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, bytes
    assert held["used"] == held["bytes_per_token"] * (reply.output.sequences.shape[1] - 1) <= held["cache"]
    assert held["videos"] > frames_of("qwen2_5_vl", 0).nbytes and held["draft"] > 0


# --- the lossy window ---


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "qwen3_vl"])
@pytest.mark.parametrize("drafter", ["none", "text"])
def test_a_window_hides_the_oldest_rows(tiny, family, drafter):
    """The answers are those of the model's own forward over all rows, where a mask hides these."""
    model, clip = tiny(family), frames_of(family, 0, 8)
    session, full = session_of(model, family, drafter, lossy_window=10), session_of(model, family, "none")
    session.send("What?", clip)
    full.send("What?", clip)
    gone, all_rows = session._kept.prefix.gone, full._kept.prefix.cache
    visual = (full._kept.prefix.head.ids == 291).nonzero()[:, 0]
    assert torch.equal(gone, visual[:-10]) and len(gone) >= 6
    assert session._kept.prefix.cache.get_seq_length() == all_rows.get_seq_length() - len(gone)
    reply = session.send("Why?")
    first, prompt = reply.stats.reused_tokens, reply.stats.prompt_tokens
    assert first >= all_rows.get_seq_length() - 3
    positions = session._kept.prefix.head.positions.unsqueeze(-2)
    seen, ids = torch.ones(1, prompt + NEW, dtype=torch.int64), reply.output.sequences[:, :prompt]
    seen[0, gone] = 0
    all_rows.set_length(first)
    while ids.shape[1] < prompt + NEW:
        start, end = all_rows.get_seq_length(), ids.shape[1]
        out = model(
            input_ids=ids[:, start:], position_ids=positions[..., start:end], attention_mask=seen[:, :end],
            use_cache=True, **{cache_argument(model): all_rows},
        )  # fmt: skip
        ids = torch.cat([ids, out.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(ids, reply.output.sequences)


def test_a_window_that_holds_all_changes_nothing(tiny, talk):
    session = session_of(tiny("qwen2_5_vl"), lossy_window=1000)
    for text in ("What?", "Why?"):
        talk(session, text, frames_of("qwen2_5_vl", len(session.turns)))
    assert len(session._kept.prefix.gone) == 0


def test_a_live_video_stays_small(tiny, tmp_path):
    """Pieces come and go; undo, branch, save and load keep to what is left."""
    model = tiny("qwen2_5_vl")
    session = session_of(model, lossy_window=12)
    for seed in range(6):
        session.extend(frames_of("qwen2_5_vl", seed))
        ids = session._kept.prefix.head.ids
        assert int((ids == 291).sum()) - len(session._kept.prefix.gone) <= 12
    session.save(tmp_path / "live")
    parts = (model, session.drafter, session.settings, session.tokenizer)
    loaded = sparrow.Session.load(tmp_path / "live", *parts, lossy_window=12, **session.options)
    answers = {one.send("What?").text for one in (session.branch(), loaded, session)}
    assert len(answers) == 1
    branch = session.branch()
    for seed in range(6, 9):
        branch.extend(frames_of("qwen2_5_vl", seed))
    ids = branch._kept.prefix.head.ids
    assert int((ids == 291).sum()) - len(branch._kept.prefix.gone) <= 12
    clips = [(clip.frames, clip.info) for clip in session.undo().clips]
    assert session.send("What?", clips).text in answers


# --- what is refused ---


def test_refusals(tiny):
    model = tiny("qwen2_5_vl")
    rival = sparrow.SparrowDrafter.from_target(Target(model), visual="rows", positions="sequence")
    parts = (settings_of("qwen2_5_vl"), Characters("qwen2_5_vl"))
    with pytest.raises(ValueError, match=r"VisualDrafter \(visual=rows, positions=sequence\) cannot"):
        sparrow.Session(model, rival, *parts)
    with pytest.raises(ValueError, match="lossy_window must be a positive number of visual tokens, got 0"):
        sparrow.Session(model, None, *parts, lossy_window=0)
    with pytest.raises(ValueError, match="lossy_window drops rows that PrunedTarget reads"):
        sparrow.Session(model, sparrow.SpecVLM(), *parts, lossy_window=10)
    session = sparrow.Session(model, None, *parts, max_new_tokens=4)
    for text in ("", "  ", None):
        with pytest.raises(ValueError, match="text must be a question, got"):
            session.send(text)
    with pytest.raises(FileNotFoundError):
        session.send("What?", "no such file.mp4")
    with pytest.raises(ValueError, match="num_beams"):
        session.send("What?", num_beams=2)
    assert not session.turns and not session.clips
    assert session.send("What?").stats.reused_tokens == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_turns(tiny, talk, family, tmp_path):
    """An image first, then a video, then an image and a video; undone, saved and loaded."""
    model, pictures = tiny(family), [frames_of(family, seed, 1)[0, :, : 56 - 20 * seed] for seed in range(3)]
    session = session_of(model, family)
    talk(session, "What?", images=[pictures[0]])
    assert talk(session, "And this?", frames_of(family, 3)).stats.reused_tokens > 10
    reply = talk(session, "Which of them?", frames_of(family, 4), images=pictures[1])
    # the second image makes another one of LLaVA-OneVision's first
    assert (reply.stats.reused_tokens > 20) == (family != "llava_onevision")
    assert [clip.medium for clip in session.clips] == ["image", "video", "image", "video"]
    assert talk(session, "Sure?").stats.reused_tokens > 30
    session.undo()
    session.save(tmp_path / "talk")
    again = sparrow.Session.load(
        tmp_path / "talk", model, session.drafter, session.settings, session.tokenizer, **session.options
    )
    assert (
        talk(again, "Now?", images=pictures[2:]).output.sequences.shape
        == talk(session, "Now?", images=pictures[2:]).output.sequences.shape
    )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_video_that_ran_is_not_run_again_for_an_image(tiny, greedy, family):
    session = sparrow.Session(tiny(family), None, settings_of(family), Characters(family), max_new_tokens=4,
                              eos_token_id=None)  # fmt: skip
    ran = session.extend(frames_of(family, 0))
    reply = session.send("what?", images=frames_of(family, 1)[0])
    assert reply.stats.reused_tokens >= ran - 1
    assert torch.equal(reply.output.sequences, greedy(session.model, whole(session), 4))
