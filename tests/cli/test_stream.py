"""Text as it comes: lines end between words on a terminal, nothing is changed elsewhere; layers and tokens counted."""

import contextlib
import re
import subprocess
import sys

import pytest
import torch

import sparrow
from sparrow.cli.pieces import BROKEN
from sparrow.cli.stream import ACCEPTED, BONUS, PLAIN, ColouredText, Stream, Text, in_colour
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
    stream = Stream(tokenizer, model, 3, 4, pieces=2)
    sparrow.generate(model, None, **inputs, max_new_tokens=4, eos_token_id=None, streamer=stream, prefill_chunk_size=2)
    assert stream.prefill.task.total == len(hooked) + text and stream.prefill.task.completed == 2 * text
    assert capsys.readouterr().out.strip()


# --- colours ---


class Characters:
    """A tokenizer whose tokens are code points."""

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def in_a_terminal(monkeypatch):
    """stdout is a terminal with colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def looks(text: str) -> list[tuple[str, str]]:
    """(look, character) of all that is no blank."""
    now, found = "", []
    for part in re.findall(r"\x1b\[[\d;]*m|.", text, re.DOTALL):
        if part in (ACCEPTED, BONUS, PLAIN):
            assert (part == PLAIN) == bool(now), "a colour ends before the next begins"
            now = "" if part == PLAIN else part
        elif not part.isspace():
            found.append((now, part))
    assert not now
    return found


def test_in_colour(monkeypatch):
    in_a_terminal(monkeypatch)
    assert in_colour()
    for name, value, colours in (("NO_COLOR", "1", False), ("NO_COLOR", "", True), ("TERM", "dumb", False)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert in_colour() == colours
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert not in_colour()


@pytest.mark.parametrize("columns", [30, 500])
def test_a_character_has_the_colour_of_its_token(monkeypatch, capsys, columns):
    """Also within a word, and where lines break; letters are tokens here."""
    in_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    text, told = ColouredText(Characters()), [("", ACCEPTED, BONUS)[at % 7 % 3] for at in range(len(TEXT))]
    for character, look in zip(TEXT, told, strict=True):
        text.add(ord(character), look)
    text.end()
    coloured = capsys.readouterr().out
    plain = Text(None)
    plain.on_finalized_text(TEXT, stream_end=True)
    assert bare(coloured) == capsys.readouterr().out
    assert looks(coloured) == [(look, c) for look, c in zip(told, TEXT, strict=True) if not c.isspace()]


def test_scripts_without_blanks_are_not_held_back(monkeypatch, capsys):
    in_a_terminal(monkeypatch)
    text = ColouredText(Characters())
    for character in "日本 word":
        text.add(ord(character), ACCEPTED)
    assert bare(capsys.readouterr().out) == "日本"  # the blank waits for its word


def test_a_drafted_answer_in_colour(monkeypatch, capsys):
    """The text is the uncoloured one; each round ends with its bonus token, but for the last that is cut."""
    in_a_terminal(monkeypatch)
    model, tokenizer, drafter = miniature_pair()
    told: list[tuple[list[int], int]] = []

    def decode(rounds: bool) -> str:
        stream = Stream(tokenizer, model, 3, 24, rounds=rounds)
        assert stream.colour == rounds

        def on_round(tokens: list[int], accepted: int, seconds: float) -> None:
            told.append((tokens, accepted))
            stream.on_round(tokens, accepted, seconds)

        options = {"max_new_tokens": 24, "eos_token_id": None, "streamer": stream, "on_round": on_round,
                   "tree": "own"}  # fmt: skip
        sparrow.generate(model, drafter, input_ids=torch.tensor([[5, 6, 7]]), **options)
        return capsys.readouterr().out

    plain, told[:] = decode(False), []
    coloured = decode(True)
    assert bare(coloured) == plain and ACCEPTED in coloured and BONUS in coloured
    shown = "".join(c for look, c in looks(coloured) if look == BONUS)
    bonus = [tokens[accepted] for tokens, accepted in told if len(tokens) > accepted]
    said = "".join(tokenizer.decode([token], skip_special_tokens=True) for token in bonus)
    assert (
        shown.replace(BROKEN, "") == "".join(said.replace(BROKEN, "").split()) != ""
    )  # bytes come with the next token


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
