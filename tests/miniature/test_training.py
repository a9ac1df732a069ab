"""The miniature's training: its inputs are the product's own, its fast forward is the model's, a killed run goes on."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from sparrow.miniature import watching
from sparrow.miniature.batches import IGNORE, STORY, Collator, _as_in_a_file, token_stories, training_batch
from sparrow.miniature.model import SETTINGS, MiniatureSize, build_miniature, miniature_tokenizer, trainable
from sparrow.miniature.recipe import CURRICULUM, Stage, TargetRecipe
from sparrow.miniature.training import Forward, train_target
from sparrow.miniature.watching import WORDS, meanings, watch
from sparrow.miniature.world import FORMATS, Format, sample, vocabulary_texts
from sparrow.training.run import Run
from sparrow.video import VideoInfo, prepare

SMALL = MiniatureSize(hidden=64, layers=2, heads=1, intermediate=96, vision_hidden=48, vision_layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    return miniature_tokenizer(vocabulary_texts(500))


def small_model(tokenizer, seed=0):
    return build_miniature(tokenizer, SMALL, seed)


def tiny_recipe(**changes) -> TargetRecipe:
    stages = (Stage(1.0, 2, (64, 128), (0.5, 0.5)),)
    values = dict(steps=6, batch_tokens=600, warmup=2, bf16=False, evaluate_every=100, save_every=2, curriculum=stages)
    return TargetRecipe(**{**values, **changes})


def test_training_inputs_are_those_of_prepare(tokenizer):
    collator = Collator(small_model(tokenizer), tokenizer, SETTINGS)
    for form in (Format(8, 64), Format(6, 128)):
        clip = sample(3, form)
        batch = collator.batch([clip], form)
        info = VideoInfo(form.frames, clip.fps, tuple(range(form.frames)), form.side, form.side)
        inputs = prepare(SETTINGS, tokenizer, clip.prompt, [(clip.frames, info)])
        prompt = inputs["input_ids"].shape[1]
        assert torch.equal(batch.input_ids[:, :prompt], inputs["input_ids"])
        assert torch.equal(batch.pixels, inputs["pixel_values_videos"])
        assert torch.equal(batch.grid, inputs["video_grid_thw"])
        kept = batch.labels[0] != IGNORE
        assert tokenizer.decode(batch.labels[0][kept]) == clip.answer + "<|im_end|>"
        assert (~kept[:prompt]).all() and torch.equal(batch.labels[0][kept], batch.input_ids[0][kept])
        positions, _ = collator.model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"],
            second_per_grid_ts=inputs["second_per_grid_ts"],
        )  # fmt: skip
        assert torch.equal(batch.positions[..., :prompt], positions)


def test_training_forward_is_the_models_own(tokenizer):
    model = small_model(tokenizer).eval()
    collator = Collator(model, tokenizer, SETTINGS)
    form = Format(8, 128)
    batch = collator.batch([sample(i, form) for i in range(2)], form)
    forward = Forward(model, bf16=False)
    with torch.no_grad():
        plain, labels = forward(batch)
        with trainable(model):
            fast, same = forward(batch)
        again, _ = forward(batch)
    assert torch.equal(labels, same) and torch.equal(plain, again)
    torch.testing.assert_close(fast, plain, atol=2e-4, rtol=1e-4)


def test_stories_name_what_covers_a_token():
    form = Format(16, 128)
    clip = next(c for c in (sample(i, form, num_shapes=1) for i in range(50)) if c.scene.shapes[0].turns is None)
    shape, stories = clip.scene.shapes[0], token_stories(clip.scene, form).view(8, 8, 8, len(STORY))
    assert set(stories[..., 3].unique().tolist()) == {0, 1}
    covered = stories[..., 0] > 0
    x, y = shape.centre(0.5, clip.scene.seconds)
    assert covered[0, int(y * 8), int(x * 8)] or shape.kind == "ring"
    assert (stories[covered] == stories[covered][0]).all()  # one shape, one story
    assert stories[covered][0, 5] == 1 + shape.enters


def test_a_batch_depends_on_seed_and_step_only(tokenizer):
    collator = Collator(small_model(tokenizer), tokenizer, SETTINGS)
    recipe = TargetRecipe(steps=100, batch_tokens=2048)
    for step in (0, 30, 99):
        a, random_state = training_batch(collator, recipe, step), random.getstate()
        b = training_batch(collator, recipe, step)
        assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.pixels, b.pixels)
        assert random.getstate() == random_state
        assert a.input_ids.numel() <= max(2048, a.input_ids.shape[1])
        visual = (a.input_ids == collator.video_token).sum(1)
        assert (visual == visual[0]).all() and int(visual[0]) in recipe.stage(step).lengths
        assert all(len(c.scene.shapes) <= recipe.stage(step).max_shapes for c in a.clips)
        other = training_batch(collator, dataclasses.replace(recipe, seed=1), step)
        assert other.input_ids.shape != a.input_ids.shape or not torch.equal(other.input_ids, a.input_ids)


def test_a_killed_run_goes_on_with_the_same_losses(tokenizer, tmp_path):
    recipe = tiny_recipe()

    class Killed(Exception):
        pass

    def train(folder, kill_at=None):
        model = small_model(tokenizer)
        run = Run(folder, recipe)
        if kill_at is not None:
            log = run.log

            def dying(**values):
                if values["step"] == kill_at:
                    raise Killed
                log(**values)

            run.log = dying
        with trainable(model):
            train_target(model, Collator(model, tokenizer, SETTINGS), recipe, run, lambda text: None)
        return model, [row["loss"] for row in run.history() if "loss" in row]

    whole, losses = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=5)
    resumed, again = train(tmp_path / "killed")
    assert len(losses) == 6 and again == losses
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns(tokenizer, tmp_path):
    """Some steps on few short clips take the loss well below its start, and gradients reach every part."""
    recipe = tiny_recipe(steps=24, batch_tokens=1500, evaluate_every=24, warmup=3)
    model = small_model(tokenizer)
    run = Run(tmp_path, recipe)
    with trainable(model):
        train_target(model, Collator(model, tokenizer, SETTINGS), recipe, run, lambda text: None)
    losses = [row["loss"] for row in run.history() if "loss" in row]
    assert np.mean(losses[-4:]) < 0.75 * losses[0]
    assert (tmp_path / "curves.png").stat().st_size > 5000
    scores = next(row for row in run.history() if "true" in row)
    assert set(scores["true"]) == set(scores["shuffled"]) == set(scores["black"])


def test_watching_asks_about_clips_kept_for_it(tokenizer, monkeypatch):
    """Of the split "dev", the same for all three videos; the model is left in training mode."""
    asked = []
    monkeypatch.setattr(
        watching, "sample", lambda n, *a, split, **k: asked.append((n, split)) or sample(n, *a, split=split, **k)
    )
    collator = Collator(small_model(tokenizer).train(), tokenizer, SETTINGS)
    watch(collator, Forward(collator.model, bf16=False), clips=3)
    assert asked == [(n, "dev") for n in range(3)] * 3 and collator.model.training


def test_watching_counts_what_only_the_video_tells(tokenizer):
    """A model that reads the answer off its input scores 1, synonyms included; one that says one word does not."""
    collator = Collator(small_model(tokenizer), tokenizer, SETTINGS)
    tables = meanings(tokenizer)
    for name, groups in WORDS.items():
        assert set(tables[name].tolist()) == {-1, *range(len(groups))}
        assert int((tables[name] >= 0).sum()) == sum(map(len, groups)), "each word ends in a token of its own"
    small, tiny = (tokenizer(f" {word}")["input_ids"][-1] for word in ("small", "tiny"))

    def cheat(batch):
        labels = batch.labels[:, 1:][batch.labels[:, 1:] != IGNORE]
        said = torch.where(labels == small, tiny, labels)
        return torch.nn.functional.one_hot(said, len(tokenizer)).float(), labels

    def deaf(batch):
        _, labels = cheat(batch)
        return torch.nn.functional.one_hot(torch.full_like(labels, tiny), len(tokenizer)).float(), labels

    scores = watch(collator, cheat, clips=4)
    assert all(value == 1 for video in scores.values() for value in video.values())
    blind = watch(collator, deaf, clips=4)["true"]
    assert blind["colour"] == 0 and 0 < blind["size"] < 1


def test_a_file_keeps_brightness_and_halves_colour():
    frames = np.random.default_rng(0).integers(60, 180, (2, 8, 8, 3), dtype=np.uint8)
    out = _as_in_a_file(frames)
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs((out @ weights) - (frames @ weights)).max() < 2
    chroma = out.astype(float) - (out @ weights)[..., None]
    assert np.abs(chroma[:, ::2, ::2] - chroma[:, 1::2, 1::2]).max() < 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(1.0, 1, (65,), (1.0,)), "lengths must be among"),
        (lambda: Stage(1.0, 5, (64,), (1.0,)), "max_shapes"),
        (lambda: Stage(1.0, 1, (64,), ()), "pair up"),
        (lambda: TargetRecipe(optimizer="sgd"), "optimizer must be"),
        (lambda: TargetRecipe(steps=0), "steps must be at least 1"),
        (lambda: TargetRecipe(lr=0.0), "lr must be positive"),
        (lambda: TargetRecipe(curriculum=(Stage(0.5, 1, (64,), (1.0,)),)), "the last one until 1.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_curriculum_reaches_every_length_up_to_4096():
    assert CURRICULUM[-1].until == 1.0 and max(CURRICULUM[-1].lengths) == 4096 and min(FORMATS) == 64
