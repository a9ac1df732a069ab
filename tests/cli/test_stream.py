"""Text as it comes: lines end between words on a terminal, nothing is changed elsewhere; layers and tokens counted."""

import contextlib
import re
import subprocess
import sys

import pytest
import torch

import sparrow
from sparrow.cli.stream import Stream, Text
from sparrow.miniature.shipped import DEMO
from tests.pairs import miniature_pair, write_miniature_pair

TEXT = (
    "On a dark green background, four shapes\n\ncan be  seen "
    + "x" * 50
    + " within 8 seconds. A small yellow triangle "
)


def stream(*parts: str) -> None:
    text = Text(None)
    for part in parts:
        text.on_finalized_text(part)
    text.on_finalized_text("enters.", stream_end=True)


@pytest.mark.parametrize("cuts", [(), (5,), (5, 8, 9, 40, 41, 60)])
def test_text_elsewhere_is_as_it_is(cuts, capsys):
    stream(*(TEXT[a:b] for a, b in zip((0, *cuts), (*cuts, None), strict=True)))
    assert capsys.readouterr().out == TEXT + "enters.\n"


def test_lines_end_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    stream("On a dark green ", "background, four ", "shapes\n\ncan be ", "seen " + "x" * 50, " within 8 seconds. ")
    assert capsys.readouterr().out.splitlines() == [
        "On a dark green background,", "four shapes", "", "can be seen", "x" * 50, "within 8 seconds. enters.",
    ]  # fmt: skip


def test_layers_and_tokens_are_counted(tmp_path, capsys):
    """The prompt's pass by its layers, once; then tokens. Hooks are gone after the first token."""
    model, tokenizer, _ = miniature_pair()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    stream = Stream(tokenizer, model, 3, 4)
    hooked = [layer for layer in model.modules() if layer._forward_hooks]
    sparrow.generate(model, None, **inputs, max_new_tokens=4, eos_token_id=None, streamer=stream)
    assert len(hooked) == stream.prefill.task.total and not any(layer._forward_hooks for layer in hooked)
    text = len(model.model.language_model.layers)  # the prompt holds no video: its tower does not run
    assert (stream.prefill.task.completed, stream.decode.task.completed) == (text, 4)
    assert capsys.readouterr().out.strip()


def test_a_failure_ends_what_is_shown(monkeypatch):
    model, tokenizer, _ = miniature_pair()
    stream = Stream(tokenizer, model, 3, 4)

    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(model.model.language_model.layers[1], "forward", broken)
    with pytest.raises(RuntimeError, match="broken"), contextlib.closing(stream):
        sparrow.generate(model, None, input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, streamer=stream)
    assert stream.prefill.ended.is_set() and stream.decode.ended.is_set()
    assert not any(layer._forward_hooks for layer in model.modules())


def test_nothing_else_reaches_the_terminal(tmp_path):
    """transformers' warnings and bars: every line on stderr is ours."""
    write_miniature_pair(tmp_path)
    command = [sys.executable, "-m", "sparrow", "generate", "--target", str(tmp_path / "target"), "--video", str(DEMO)]
    command += ["--drafter", str(tmp_path / "drafter"), "--prompt", "What moves?", "--max-new-tokens", "4"]
    done = subprocess.run([*command, "--num-frames", "4"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    ours = r"sparrow\s*|[┏┡└━┳╇┴─┓┩┘]+|[┃│].*[┃│]|(loading the target|reading the video|running the prompt|decoding).*"
    assert not [line for line in done.stderr.splitlines() if not re.fullmatch(ours, line)], done.stderr
