"""The pair the package ships: it fits, it is lossless, it drafts well, and the wheel holds it."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch

import sparrow
from bench import numbering
from sparrow.cli.loading import load_drafter, load_target
from sparrow.evaluation.questions import question, sampling
from sparrow.miniature.shipped import ASSETS, REFERENCE, SHIPPED, pair
from sparrow.targets.adapter import Target
from sparrow.video import load_settings

ROOT = pathlib.Path(__file__).parents[2]
ARMS = sorted(folder for folder in (SHIPPED / "arms").glob("*") if folder.is_dir())
NEW = 80


@pytest.fixture(scope="module")
def shipped():
    """(model, tokenizer, drafter, inputs of the first clip of the test split at 64 visual tokens)."""
    folder, drafter = pair()
    model, tokenizer = load_target(folder, "float32", torch.device("cpu"), False)
    inputs = Target(model).inputs(question(load_settings(folder), tokenizer, 64, 0, split="test").inputs)
    return model, tokenizer, load_drafter(str(drafter), model), inputs


def test_greedy_is_transformers_own_and_tau_is_high(shipped):
    model, tokenizer, drafter, inputs = shipped
    out = sparrow.generate(model, drafter, **inputs, **sampling(0.0, NEW), tree="12-6-2")
    assert torch.equal(out.sequences, model.generate(**inputs, **sampling(0.0, NEW)))
    assert out.stats.visual_tokens == 64
    assert out.stats.tau > 3, f"tau {out.stats.tau}: drafter and target do not belong together"
    text = tokenizer.decode(out.sequences[0, inputs["input_ids"].shape[1] :])
    assert len(set(text.split())) > 10, f"no description: {text}"


def test_the_drafter_for_vllms_numbering(shipped):
    """It foresees more than the other one where prompts are numbered as it was trained, and less elsewhere."""
    model, _, other, inputs = shipped
    drafter = load_drafter(str(REFERENCE), model)
    assert (drafter.config.numbering, other.config.numbering) == ("reference", "hf")
    options = sampling(0.0, NEW) | {"tree": "4-4-1", "positions": "reference"}
    plain = sparrow.generate(model, None, **inputs, **sampling(0.0, NEW), positions="reference").sequences
    outs = [sparrow.generate(model, one, **inputs, **options) for one in (drafter, other)]
    assert all(torch.equal(out.sequences, plain) for out in outs)
    assert outs[0].stats.tau > outs[1].stats.tau


def test_the_document_shows_what_either_drafter_foresees():
    result = json.loads((ROOT / "bench" / "results" / "serving" / "numbering.json").read_text())
    assert numbering.table(result) in (ROOT / "docs" / "miniature.md").read_text()


def test_sampled_is_plain_sampling_with_the_same_seed(shipped):
    model, _, drafter, inputs = shipped
    options = sampling(1.0, NEW)
    out = sparrow.generate(model, drafter, **inputs, **options, seed=7, tree="12-6-2")
    assert torch.equal(out.sequences, sparrow.generate(model, None, **inputs, **options, seed=7).sequences)
    assert not torch.equal(out.sequences, sparrow.generate(model, drafter, **inputs, **options, seed=8).sequences)
    assert out.stats.tau > 2


@pytest.mark.parametrize("folder", ARMS, ids=lambda folder: folder.name)
def test_every_arm_belongs_to_the_target(shipped, folder):
    model, _, _, inputs = shipped
    drafter = load_drafter(str(folder), model)
    out = sparrow.generate(model, drafter, **inputs, **sampling(0.0, 24))
    assert torch.equal(out.sequences, model.generate(**inputs, **sampling(0.0, 24)))
    assert out.stats.tau > 1.2, f"tau {out.stats.tau}: it drafts nothing of use"


def test_an_installation_has_every_asset(tmp_path):
    pytest.importorskip("setuptools", "77")  # what pyproject asks for
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    assets = {p.relative_to(ASSETS): p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()}
    built = tmp_path / "sparrow" / "assets"
    assert {p.relative_to(built): p.stat().st_size for p in built.rglob("*") if p.is_file()} == assets
    assert len(assets) >= 11
