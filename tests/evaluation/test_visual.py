"""Cutting text off from the video layer by layer; accuracy by class of word."""

import pytest
import torch

from sparrow.evaluation.report import curves
from sparrow.evaluation.visual import (
    layer_cuts,
    layer_table,
    shares,
    watching,
    watching_table,
)
from sparrow.miniature.batches import Collator
from sparrow.miniature.layer_cut import layer_cut
from sparrow.miniature.model import SETTINGS, trainable
from sparrow.miniature.training import Forward
from sparrow.miniature.watching import batches, hits
from sparrow.miniature.world import Format, sample
from tests.pairs import miniature_pair

FORM, LAYERS = Format(8, 64), 3


@pytest.fixture(scope="module")
def target():
    model, tokenizer, _ = miniature_pair()
    return model, Collator(model, tokenizer, SETTINGS), Forward(model, bf16=False)


@torch.no_grad()
def logits(target, first, change=False):
    _, collator, forward = target
    made = collator.batch([sample(i, FORM) for i in range(2)], FORM, looks=False)
    if change:
        made.pixels = -made.pixels
    if first is None:
        return forward(made)[0]
    with layer_cut(target[0], first):
        return forward(made)[0]


def test_cut_behind_the_last_layer_changes_nothing(target):
    torch.testing.assert_close(logits(target, LAYERS), logits(target, None), atol=1e-4, rtol=1e-4)


def test_cut_before_the_first_layer_leaves_no_video(target):
    assert torch.equal(logits(target, 0), logits(target, 0, change=True))
    for first in range(1, LAYERS + 1):
        assert (logits(target, first) - logits(target, first, change=True)).abs().max() > 1e-3
        assert (logits(target, first) - logits(target, first - 1)).abs().max() > 1e-3


def test_a_cut_leaves_the_model_as_it_was(target):
    model = target[0]
    before, plain = model.config.get_text_config()._attn_implementation, logits(target, None)
    with pytest.raises(RuntimeError), layer_cut(model, 1):
        raise RuntimeError
    assert model.config.get_text_config()._attn_implementation == before
    assert torch.equal(logits(target, None), plain)
    for first in (-1, LAYERS + 1):
        with pytest.raises(ValueError, match=rf"first must lie in \[0, 3\], got {first}"), layer_cut(model, first):
            pass


def test_hits_count_what_the_model_says(target):
    """A forward that is right about everything, or about nothing."""
    _, collator, _ = target

    def oracle(made, right=True):
        labels = made.labels[:, 1:][made.labels[:, 1:] >= 0]
        said = labels if right else (labels + 1) % 600
        return torch.nn.functional.one_hot(said, 700).float(), labels

    got = shares(hits(collator, oracle, FORM, video="true", split="dev", clips=4))
    assert {f["value"] for f in got.values()} == {1.0} and {"colour", "kind", "second", "all"} <= set(got)
    wrong = hits(collator, lambda made: oracle(made, False), FORM, video="true", split="dev", clips=4)
    assert shares(wrong)["all"]["value"] == 0 and all(len(rows) == 4 for rows in wrong.values())


def test_the_three_videos_differ(target):
    _, collator, forward = target
    seen = []
    for video in ("true", "shuffled", "black"):
        hits(collator, lambda made: seen.append(made.pixels.clone()) or forward(made), FORM, video=video, split="dev",
             clips=2)  # fmt: skip
    half = len(seen[0]) // 2
    assert torch.equal(seen[1], torch.cat([seen[0][half:], seen[0][:half]])) and (seen[2] == -1).all()
    with pytest.raises(ValueError, match="video must be one of true, shuffled, black, got 'blue'"):
        hits(collator, forward, FORM, video="blue", split="dev", clips=2)
    with pytest.raises(ValueError, match="clips must be at least 2"):
        hits(collator, forward, FORM, video="true", split="dev", clips=1)


def test_batches():
    for clips in range(2, 40):
        for most in (2, 5, 16):
            made = batches(clips, most)
            assert [i for run in made for i in run] == list(range(clips))
            assert all(2 <= len(run) <= most + 1 for run in made)


def test_tables_and_picture(target, tmp_path):
    model, collator, forward = target
    with trainable(model):
        rows = watching(collator, forward, (64, 128), "dev", 2, lambda text: None)
        cuts = layer_cuts(
            collator, forward, lambda x: layer_cut(model, x), LAYERS, 64, "dev", 2, lambda text: None
        )  # fmt: skip
    assert [(r["length"], r["video"]) for r in rows] == [
        (n, v) for n in (64, 128) for v in ("true", "shuffled", "black")
    ]
    assert len(watching_table(rows).splitlines()) == 8 and len(layer_table(cuts).splitlines()) == 2 + LAYERS + 1
    curves.layer_cut({"rows": cuts}, tmp_path / "cut.png")
    assert (tmp_path / "cut.png").stat().st_size > 8000
