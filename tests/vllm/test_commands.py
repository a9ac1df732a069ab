"""`sparrow train answers` and `sparrow eval` with vLLM as their engine, on the shipped pair."""

import json

import pytest

from sparrow.cli.main import main
from sparrow.miniature.shipped import DEMO
from sparrow.training.answers import read_answers
from tests.vllm.cases import CASES, DESCRIBE, TARGET, asked, on_a_cpu

pytestmark = pytest.mark.skipif(not asked(), reason="vLLM has an environment of its own: `make test-vllm`")
OPTIONS = json.dumps({
    "max_model_len": 2048, "max_num_batched_tokens": 2048, "enforce_eager": True, "seed": 0,
    "limit_mm_per_prompt": {"video": 2, "image": 1},
})  # fmt: skip
TURNS = [
    {
        "role": "user",
        "content": [{"type": "video", "video": str(DEMO), "nframes": 8}, {"type": "text", "text": DESCRIBE}],
    },
    {"role": "assistant", "content": "A red circle stands still."},
    {"role": "user", "content": [{"type": "text", "text": "List the shapes."}, {"type": "video", "video": str(DEMO)}]},
]


def answers(run, *more: str) -> int:
    clips = run.parent / "clips.jsonl"
    lines = [{"prompt": DESCRIBE, "video": str(DEMO)}, {"messages": TURNS}, {"prompt": CASES[3]["prompt"]}]
    clips.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return main([
        "train", "answers", *more, f"target={TARGET}", f"data.clips={clips}", f"run={run}", "device=cpu",
        "states.positions=reference", "answers.batch=2", "answers.temperatures=[0,1]", "answers.max_new_tokens=48",
        "answers.seed=3", "data.validation=0",
    ])  # fmt: skip


@pytest.mark.slow
def test_answers_of_either_engine(tmp_path, monkeypatch, capsys):
    """Greedy ones are the same, of chats, too; a run that was stopped goes on; a folder belongs to one engine."""
    on_a_cpu(monkeypatch)
    by_vllm, by_transformers = tmp_path / "vllm", tmp_path / "transformers"
    engine = ("--engine", "vllm", "--engine-options", OPTIONS)
    assert answers(by_vllm, *engine) == 0 and answers(by_transformers) == 0
    made, own = read_answers(by_vllm / "answers"), read_answers(by_transformers / "answers")
    assert len(made) == len(own) == 6
    assert [a for a in made if not a.temperature] == [a for a in own if not a.temperature]
    assert any(a.ids != b.ids for a, b in zip(made, own, strict=True) if a.temperature)
    file = by_vllm / "answers" / "answers-0.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-2]) + "\n")
    assert answers(by_vllm, *engine) == 0
    assert read_answers(by_vllm / "answers") == made  # sampled ones, too: each has a seed of its own
    assert answers(by_vllm) == 1
    assert "engine='vllm', now it is None" in capsys.readouterr().err


@pytest.mark.slow
def test_eval(tmp_path, monkeypatch):
    on_a_cpu(monkeypatch)
    assert main([
        "eval", "--engine", "vllm", "--engine-options", OPTIONS, "--clips", "3", "--runs", "1", "--max-new-tokens",
        "24", "--out", str(tmp_path),
    ]) == 0  # fmt: skip
    result = json.loads((tmp_path / "serving.json").read_text())
    assert result["identical"] and [p["concurrent"] for p in result["points"]] == [1, 4, 16, 32]
    assert result["own_loop"]["reference"]["answers_as_vllm"] == 3
    for point in result["points"]:
        ours, plain = (point["systems"][name] for name in ("vLLM with sparrow", "vLLM"))
        assert plain["accepted_length"] is None and plain["drafts"] == 0
        assert ours["accepted_length"] == pytest.approx(result["own_loop"]["reference"]["accepted_length"], rel=0.15)
        assert ours["tokens_per_second"] > 0 and ours["latency_p95"] >= ours["latency_median"] > 0
