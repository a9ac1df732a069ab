"""What the analysis of layers says of models of which it is known: every family, by transformers' own figures."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F

import sparrow
from sparrow.evaluation.hidden import FIGURES, hidden_table, profile, rows_of, settled_layer
from sparrow.evaluation.report.render import render
from sparrow.files import read_json
from sparrow.miniature.layer_cut import layer_cut
from sparrow.targets.adapter import Target
from sparrow.targets.looking import looking
from tests.videos import FAMILIES, sample_inputs

NEW = 6


def prepared(tiny, family: str, seed: int = 0):
    """(target, inputs, the answer that it gives itself)."""
    model, inputs = tiny(family), sample_inputs(family, seed=seed)
    out = sparrow.generate(model, None, **inputs, max_new_tokens=NEW, eos_token_id=None)
    return Target(model), inputs, out.sequences[0, inputs["input_ids"].shape[1] :]


def hooks(target) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in target.model.modules()]


def profiled(target, inputs, answer):
    steps: list[None] = []
    rows = profile(target, inputs, answer, functools.partial(layer_cut, target.model), lambda: steps.append(None))
    assert len(steps) == target.num_layers + 2
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_by_what_is_known(tiny, family):
    """The answer comes again; ends of every curve; shares lie in [0, 1]; the model is left as it was."""
    target, inputs, answer = prepared(tiny, family)
    attention, hooked = target.config._attn_implementation, hooks(target)
    rows = profiled(target, inputs, answer)
    assert target.config._attn_implementation == attention
    assert hooks(target) == hooked
    assert len(rows) == target.num_layers + 1 and rows[-1]["reproduced"] == (NEW, NEW)
    first, last = rows[0], rows[-1]
    assert last["agreement"] == last["cut"] == (NEW, NEW) and last["cosine_last"][0] == pytest.approx(NEW)
    assert first["cosine_text"][0] == pytest.approx(NEW) and first["cut_video"][0] == 0
    assert last["cut_video"][0] == last["cut_video"][1] == NEW - first["cut"][0]
    visual = int((~target.is_text(inputs["input_ids"])).sum())
    assert first["cosine_visual"] == (pytest.approx(visual), visual)
    p = inputs["input_ids"].shape[1]
    for row in rows[1:]:
        assert 0 < row["attention"][0] < row["attention"][1] == NEW
        assert row["uniform"][0] == pytest.approx(sum(visual / (p + at) for at in range(NEW)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_against_transformers_own(tiny, family):
    """Attention on video is that of its eager attention, states are its hidden_states."""
    target, inputs, answer = prepared(tiny, family)
    rows = profiled(target, inputs, answer)
    whole = {name: value for name, value in inputs.items() if name != "attention_mask"}
    whole["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = F.pad(whole["mm_token_type_ids"], (0, NEW))
    visual = ~target.is_text(whole["input_ids"][0])
    before = target.config._attn_implementation
    try:
        target.model.set_attn_implementation({"text_config": "eager"})
        with torch.no_grad():
            out = target.model(**whole, use_cache=False, output_attentions=True, output_hidden_states=True)
    finally:
        target.model.set_attn_implementation({"text_config": before})
    at = slice(len(visual) - NEW - 1, len(visual) - 1)
    for k, weights in enumerate(out.attentions, 1):
        assert rows[k]["attention"][0] == pytest.approx(
            float(weights[0, :, at][..., visual].sum(-1).mean(0).sum()), rel=1e-4
        )
    for k, state in enumerate(out.hidden_states[: target.num_layers]):  # the last one is behind the final norm
        cosine = F.cosine_similarity(state[0, at], out.hidden_states[0][0, at], dim=-1)
        assert rows[k]["cosine_text"][0] == pytest.approx(float(cosine.sum()), rel=1e-4, abs=1e-4)
        said = target.head(target.norm(state[0, at])).argmax(-1)
        assert rows[k]["agreement"][0] == int((said == out.logits[0, at].argmax(-1)).sum())


def test_a_target_that_ignores_the_video(tiny):
    """Cutting costs nothing where values of visual rows are zero in the residual; then no token needs the video."""
    target, inputs, answer = prepared(tiny, "qwen2_5_vl")

    def nothing(k):
        return layer_cut(target.model, target.num_layers)

    rows = profile(target, inputs, answer, nothing, lambda: None)
    assert all(row["cut"] == (NEW, NEW) and row["cut_video"] == (0, 0) for row in rows)
    made = rows_of([rows, rows])
    assert all(row["cut_video"]["value"] is None for row in made) and "| - |" in hidden_table(made)


def test_refusals(tiny):
    target, inputs, answer = prepared(tiny, "qwen2_5_vl")
    cut = functools.partial(layer_cut, target.model)
    with pytest.raises(ValueError, match="answer must have a token"):
        profile(target, inputs, answer[:0], cut, lambda: None)
    with pytest.raises(ValueError, match="no visual token"):
        profile(target, {"input_ids": torch.tensor([[5, 6, 7]])}, answer, cut, lambda: None)
    attention = target.config._attn_implementation
    with pytest.raises(RuntimeError, match="inside"), looking(target, torch.ones(3, dtype=torch.bool), 0):
        raise RuntimeError("inside")
    assert target.config._attn_implementation == attention


def test_settled_layer():
    rows = [{"a": {"value": value}} for value in (0.1, 0.96, 0.5, 0.95, 1.0)]
    assert settled_layer(rows, "a") == 3 and settled_layer(rows, "a", 0.1) == 0
    assert settled_layer(rows, "a", 1.1) is None and settled_layer([{"a": {"value": None}}], "a") is None


def test_the_command(tmp_path, monkeypatch, capsys):
    """One's own clip: JSON that renders again to the same Markdown, a picture, and every figure."""
    from sparrow.cli.main import main
    from sparrow.miniature.shipped import DEMO
    from tests.pairs import write_miniature_pair

    write_miniature_pair(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["--video", str(DEMO), "--prompt", "What moves?", "--num-frames", "4", "--max-new-tokens", "5"]
    assert main(["analyse", "--target", str(tmp_path / "target"), *asked, "--out", str(tmp_path / "out")]) == 0
    assert "hidden.json" in capsys.readouterr().out
    made = read_json(tmp_path / "out/hidden.json")
    assert made["settings"]["clips"] == ["demo.mp4"] and made["settings"]["answer_tokens"][0] <= 5
    assert [set(FIGURES) - set(row) for row in made["rows"][1:]] == [set()] * (len(made["rows"]) - 1)
    assert (tmp_path / "out/hidden.md").read_text() == render(json.loads(json.dumps(made)), tmp_path)
    assert (tmp_path / "out/hidden.png").stat().st_size > 10_000


@pytest.mark.parametrize("words", [["--video", "a.mp4"], ["--prompt", "What?"], ["--video", "a.mp4", "--prompt", " "]])
def test_a_video_without_a_prompt(words, capsys):
    from sparrow.cli.main import main

    assert main(["analyse", *words]) != 0
    assert "--video and --prompt belong together" in capsys.readouterr().err
