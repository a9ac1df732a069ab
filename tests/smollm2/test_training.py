"""Teaching: stages, what each trains, going on after a kill, and text that holds the language."""

import contextlib
import dataclasses
import re

import pytest
import torch

from sparrow.files import write_tensors
from sparrow.miniature.batches import IGNORE, Collator, training_batch
from sparrow.miniature.model import SETTINGS, trainable
from sparrow.miniature.recipe import Stage
from sparrow.miniature.world import Format, sample
from sparrow.smollm2 import host, lora, texts, warm
from sparrow.smollm2.lessons import CUT, Lessons
from sparrow.smollm2.recipe import SmolRecipe
from sparrow.smollm2.training import Teacher
from sparrow.smollm2.watching import classes_of, hits, shares
from sparrow.smollm2.words import CORE, MEANINGS
from sparrow.training.run import Run
from tests.smollm2.cases import language, tokenizer

SHORT = (Stage(1.0, 1, (64,), (1.0,)),)
RECIPE = SmolRecipe(
    warm_steps=2, merger_steps=2, lora_steps=4, warm_tokens=512, batch_tokens=256, text_every=2, text_rows=2,
    text_prompts=2, text_tokens=3, evaluate_every=100, save_every=1, rank=2, warmup=1, warm=SHORT, teach=SHORT,
    bf16=False, document_rows=1, document_tokens=8, dense_until=0.5,
)  # fmt: skip


class Stop(Exception):
    """A kill."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(warm, "SOLVED", 2)
    monkeypatch.setattr("sparrow.smollm2.training.DEV_CLIPS", 2)


def teach(folder, stop=None, recipe=RECIPE):
    """Trains; (teacher, log). stop: the step after whose log line the process dies."""
    model = host.build(language())
    with trainable(model):
        teacher = Teacher(model, Collator(model, tokenizer(), SETTINGS), recipe, Run(folder, recipe), lambda text: None)
        if stop is not None:
            log = teacher.run.log

            def dying(**values):
                log(**values)
                if values["step"] == stop:
                    raise Stop

            teacher.run.log = dying
        with contextlib.suppress(Stop):
            teacher.train()
    return teacher, teacher.run.history()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm, "SOLVED", 2)
        patch.setattr("sparrow.smollm2.training.DEV_CLIPS", 2)
        return teach(tmp_path_factory.mktemp("whole"))


def test_stages_follow_each_other(whole):
    _, log = whole
    assert [row["stage"] for row in log if "stage" in row] == ["warm"] * 2 + ["merger"] * 2 + ["lora"] * 4
    assert [row["step"] for row in log if "drift" in row] == [5, 7]
    assert [row["step"] for row in log if "dense" in row] == [4]
    names = {"core", "first", *MEANINGS, *(f"first {name}" for name in CORE)}
    assert {"true", "shuffled"} <= set(log[-1]) and set(log[-1]["true"]) == names


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_been(whole, tmp_path, stop):
    teach(tmp_path, stop)
    teacher, log = teach(tmp_path)
    assert log == whole[1]
    for name, value in whole[0].taught().items():
        assert torch.equal(teacher.taught()[name], value), name


def test_a_run_may_begin_with_another_ones_result(whole, tmp_path):
    write_tensors(tmp_path / "taught.safetensors", whole[0].taught())
    start = {"start": str(tmp_path / "taught.safetensors"), "warm_steps": 0, "merger_steps": 0, "tower_lr": 1e-12}
    teacher, log = teach(tmp_path / "run", stop=0, recipe=dataclasses.replace(RECIPE, **start, lora_lr=1e-12))
    assert log[0]["stage"] == "lora"
    for name, value in whole[0].taught().items():
        torch.testing.assert_close(teacher.taught()[name], value, atol=2e-3, rtol=0) if "merger" in name else None
        assert "merger" in name or torch.allclose(teacher.taught()[name], value, atol=1e-6), name
    write_tensors(tmp_path / "less.safetensors", {n: v for n, v in whole[0].taught().items() if "layers.1" not in n})
    with pytest.raises(ValueError, match="adapters of other layers"):
        teach(tmp_path / "other", recipe=dataclasses.replace(RECIPE, start=str(tmp_path / "less.safetensors")))


def test_each_stage_trains_its_own(whole):
    """The language model never; the whole tower in the first and last stage; the adapters in the last only."""
    teacher, _ = whole
    before = host.build(language())
    own = dict(before.model.language_model.named_parameters())
    for name, value in teacher.model.model.language_model.named_parameters():
        if ".A" not in name and ".B" not in name:
            assert torch.equal(value, own[name.replace(".inner.", ".")]), name
    blocks = "blocks.0.attn.qkv.weight"
    assert not torch.equal(teacher.model.model.visual.state_dict()[blocks], before.model.visual.state_dict()[blocks])
    assert all(a.B.abs().sum() > 0 for a in teacher.adapters.values())
    for stage, trained in (("warm", "visual."), ("merger", "visual.merger."), ("lora", ("visual.", "language"))):
        teacher._enter(stage)
        names = {n for n, p in teacher.model.named_parameters() if p.requires_grad}
        assert names and all(n.removeprefix("model.").startswith(trained) for n in names)
        assert stage != "lora" or {n[-2:] for n in names if "language" in n} == {".A", ".B"}
    teacher.recipe = dataclasses.replace(RECIPE, tower_lr=0.0)
    teacher._enter("lora")
    assert not any(p.requires_grad for n, p in teacher.model.model.visual.named_parameters() if "blocks" in n)


def test_adapters_may_begin_with_fewer_and_narrower_ones():
    old, new = host.build(language()), host.build(language())
    decoder = old.model.language_model
    state = {f"{name}.{part}": torch.randn(2, 192) if part == "A" else torch.randn(layer.out_features, 2)
             for name, owner, attribute in lora.places(decoder) if attribute in ("q_proj", "v_proj")
             for layer in [getattr(owner, attribute)] for part in ("A", "B")}  # fmt: skip
    lora.merge(decoder, state)
    adapters = lora.add(new.model.language_model, 3)
    lora.begin_with(adapters, state)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(new(input_ids=ids).logits, old(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="rank 2 do not fit into rank 1"):
        lora.begin_with(lora.add(host.build(language()).model.language_model, 1), state)


def test_lessons_leave_the_closing_out():
    """Of all descriptions at a share of 1, of none at 0; the words left, but for their end, are in the loss or not."""
    model = host.build(language())
    clips = [sample(i, Format(8, 64), split="train") for i in range(3)]
    assert all(clip.kind == "describe" for clip in clips)
    kept = Lessons(model, tokenizer(), SETTINGS, 0.0).batch(clips, Format(8, 64))
    assert [clip.answer for clip in kept.clips] == [clip.answer for clip in clips]
    short = Lessons(model, tokenizer(), SETTINGS, 1.0).batch(clips, Format(8, 64))
    for whole, part in zip(clips, short.clips, strict=True):
        assert part.kind == CUT and whole.answer.startswith(part.answer) and part.answer.endswith(".")
        assert re.match(r" (At the end|In the last frame|In total|There (is|are)),? ", whole.answer[len(part.answer) :])


def test_a_step_has_every_word_that_needs_the_video_and_few_of_the_others(whole):
    teacher = whole[0]
    clips = [sample(i, Format(8, 64), split="train") for i in range(4)]
    batch = Lessons(teacher.model, tokenizer(), SETTINGS, 0.5).batch(clips, Format(8, 64))
    before = batch.labels.clone()
    told, words = teacher._thinned(batch, 0), batch.labels[batch.labels != IGNORE]
    everything = classes_of(teacher.tagger, batch.clips) >= 0
    assert int(told.sum()) == int(everything.sum()) and len(told) == len(words)
    assert torch.equal(words[told], before[before != IGNORE][everything])
    others = int((~everything).sum())
    assert 0.1 * others < int((~told).sum()) < 0.4 * others
    for row, clip in zip(batch.labels, batch.clips, strict=True):
        assert clip.kind != CUT or int(tokenizer().eos_token_id) not in row[row != IGNORE].tolist()


def test_a_batch_of_one_short_answer_keeps_a_loss(whole):
    """None of whose words needs the video: where the draw would leave all of them out, all stay."""
    teacher = whole[0]
    clip = dataclasses.replace(sample(0, Format(8, 64), split="train"), kind="motion", answer="It stays still.")
    left = set()
    for step in range(40):
        batch = Lessons(teacher.model, tokenizer(), SETTINGS, 0.5).batch([clip], Format(8, 64))
        teacher._thinned(batch, step)
        left.add(int((batch.labels != IGNORE).sum()))
    assert min(left) >= 1 and len(left) > 1


def test_documents_are_pieces_of_pythons_reference():
    rows = texts.documents(tokenizer(), 3, 20, 0)
    assert len(rows) == 3 and all(0 < len(ids) <= 20 and begin == 1 for ids, begin in rows)
    assert rows == texts.documents(tokenizer(), 3, 20, 0) != texts.documents(tokenizer(), 3, 20, 1)


def test_least_squares_cannot_be_bettered():
    model = host.build(language())
    collator = Collator(model, tokenizer(), SETTINGS)
    data = SmolRecipe(warm_tokens=4096, warm=SHORT).warm_data()
    words = warm.Words(model.model.language_model.embed_tokens.weight, tokenizer())
    with trainable(model), torch.no_grad():
        batches = [training_batch(collator, data, i) for i in range(2)]
        loss = lambda: float(warm.loss(model, words, batches[0])[0] + warm.loss(model, words, batches[1])[0])  # noqa: E731
        before = loss()
        warm.solve(model, words, batches)
        after = loss()
        last = model.model.visual.merger.mlp[2]
        assert after < 2 < before
        for value in (last.weight, last.bias):
            for factor in (0.9, 1.1):
                value.mul_(factor)
                assert loss() > after
                value.div_(factor)


def test_words_say_look_and_place():
    model = host.build(language())
    collator = Collator(model, tokenizer(), SETTINGS)
    batch = training_batch(collator, SmolRecipe(warm_tokens=256, warm=SHORT).warm_data(), 0)
    embedding = model.model.language_model.embed_tokens.weight
    wanted, covered = warm.Words(embedding, tokenizer()).targets(batch)
    word = lambda text: embedding[tokenizer()(f" {text}")["input_ids"][0]]  # noqa: E731
    scene = batch.clips[0].scene.shapes[0]
    at = int(covered[:, 0].nonzero()[0])
    row, column = at % 16 // 4, at % 4
    parts = [(word("top") + word("upper")) / 2] if row == 0 else []
    parts += [(word("bottom") + word("lower")) / 2] if row == 3 else []
    parts += [word("left")] if column == 0 else [word("right")] if column == 3 else []
    if row in (1, 2) and column in (1, 2):
        parts = [(word("center") + word("middle")) / 2]
    look = word(scene.colour) + word(scene.kind) + word(scene.size)
    torch.testing.assert_close(wanted[at], look + 0.7 * sum(parts, torch.zeros_like(look)))
    assert torch.equal(wanted[covered[:, 0] == 0][0], 0.25 * word("background"))


def test_text_pulls_back_what_drifted():
    model = host.build(language())
    rows = texts.answers(model, tokenizer(), ["one two", "red"], 4)
    adapters = lora.add(model.model.language_model, 2)
    with trainable(model):
        assert texts.drift(model, adapters, rows, 2).abs() < 1e-6
        for adapter in adapters.values():
            torch.nn.init.normal_(adapter.B, std=0.2)
        optimizer = torch.optim.AdamW([p for a in adapters.values() for p in (a.A, a.B)], lr=0.01)
        drifts = []
        for _ in range(40):
            loss = texts.drift(model, adapters, rows, 2)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            drifts.append(loss.item())
    assert drifts[0] > 1e-3 and drifts[-1] < drifts[0] / 3


def test_answers_are_the_models_own_in_batches_of_ragged_prompts():
    model = host.build(language())
    asked = ["red", "a much longer prompt with many words in it", "two"]
    for prompt, (ids, start) in zip(asked, texts.answers(model, tokenizer(), asked, 5, temperature=0), strict=True):
        assert ids[:start] == texts.chat(tokenizer(), prompt)
        alone = model.generate(input_ids=torch.tensor([ids[:start]]), max_new_tokens=5, do_sample=False)
        assert alone[0].tolist() == ids


def test_surprise_is_the_mean_of_single_rows():
    model = host.build(language())
    rows = texts.answers(model, tokenizer(), ["red", "a much longer prompt"], 5)
    together = texts.surprise(model, rows, 2)
    single = [texts.surprise(model, [row], 2) for row in rows]
    assert together[0] == pytest.approx(sum(a for a, _ in single), rel=1e-4)
    ids, start = rows[0]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    by_hand = -sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids)))
    assert single[0] == (pytest.approx(by_hand, rel=1e-4), len(ids) - start)


def test_hits_know_the_right_word_and_the_video():
    """A forward pass that says the labels is right everywhere; one that is a token late is not."""
    model = host.build(language())
    collator = Collator(model, tokenizer(), SETTINGS)

    def forward(batch, late=0):
        labels = batch.labels[:, 1:][batch.labels[:, 1:] >= 0]
        seen.append(batch.pixels)
        return torch.nn.functional.one_hot(labels.roll(late), len(tokenizer())).float(), labels

    seen = []
    for video in ("true", "shuffled", "black"):
        counts = hits(collator, forward, Format(8, 64), video=video, split="dev", clips=3)
        assert shares(counts)["core"] == 1.0 and all(sum(of for _, of in counts[name]) > 0 for name in CORE)
    true, shuffled, black = seen
    assert torch.equal(true.chunk(3)[0], shuffled.chunk(3)[1]) and (black == -1).all()
    wrong = hits(collator, lambda b: forward(b, 1), Format(8, 64), video="true", split="dev", clips=3)
    assert shares(wrong)["core"] < 0.5
    with pytest.raises(ValueError, match="video must be one of"):
        hits(collator, forward, Format(8, 64), video="none", split="dev", clips=3)


@pytest.mark.parametrize("setting", [{"rank": 0}, {"lora_lr": 0.0}, {"other_words": -1.0}, {"other_share": 0.0}])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SmolRecipe(**setting)
