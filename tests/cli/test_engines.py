"""The options of commands that run vLLM's engine; what is wrong with them is said before anything is loaded."""

import pytest

from sparrow.cli import engine_options
from sparrow.cli.main import main


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(engine_options.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_engine_options_are_an_object(installed, text):
    with pytest.raises(ValueError, match="--engine-options must be a JSON object"):
        engine_options.engine_options(text)
    assert engine_options.engine_options('{"max_num_seqs": 4}') == {"max_num_seqs": 4}


def test_without_vllm(monkeypatch, capsys):
    monkeypatch.setattr(engine_options.importlib.util, "find_spec", lambda name: None)
    assert main(["eval", "--engine", "vllm"]) == 1
    assert "vLLM is not installed here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--table", "main"), "--engine takes no --table"),
        (("--timed", "0"), "--engine takes no --timed"),
        (("--clips", "mine.jsonl"), "--clips must be a number with --engine, got 'mine.jsonl'"),
        (("--drafter", "a", "--drafter", "b"), "--drafter: with --engine it must be one folder, got 2"),
    ],
)
def test_eval_refuses_what_it_would_not_use(installed, capsys, more, message):
    assert main(["eval", "--engine", "vllm", *more]) == 1
    assert message in capsys.readouterr().err
