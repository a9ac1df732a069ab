"""`sparrow chat`: lines of stdin in, answers out."""

import io
import os
import signal
import sys
import threading

import pytest
from PIL import Image

from sparrow.cli import chat
from sparrow.cli.main import main
from sparrow.miniature.shipped import DEMO


@pytest.fixture
def talk(monkeypatch, capfd):
    """talk(*lines, more arguments) -> exit code, stdout, stderr."""

    def run(*lines, options=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["chat", "--max-new-tokens", "12", *options])
        return code, *capfd.readouterr()

    return run


def test_a_conversation(talk, tmp_path):
    """A video, questions, undo, save; then the saved one goes on, and says the same."""
    file = tmp_path / "talk.safetensors"
    code, out, err = talk(
        "Describe the video in detail.", "", "How many shapes are there?", "/undo", f"/save {file}", "/memory",
        "What colour is it?", "/quit", "never asked",
        options=["--video", str(DEMO)],
    )  # fmt: skip
    assert code == 0 and "Traceback" not in err
    assert "1056 tokens]" in err and "16 of 1072 prompt tokens were run" in err and "tau " in err
    assert "taken back: How many shapes are there?" in err and "bytes_per_token  4,096 bytes" in err
    answers = out.splitlines()
    assert len(answers) == 3 and answers[0].startswith("On a dark green background")
    code, out, err = talk("What colour is it?", options=["--load", str(file)])
    assert code == 0 and out.splitlines() == answers[2:] and "> Describe the video in detail." in err


def test_a_second_video_and_sampling(talk):
    options = ["--video", str(DEMO), "--num-frames", "8", "--temperature", "0.8", "--seed", "3", "--system", "Be brief"]
    lines = ("Describe the video in detail.", f"/video {DEMO}", "And now?")
    first, again = talk(*lines, options=options), talk(*lines, options=options)
    assert first[0] == 0 and first[1] == again[1] and first[2].count("mp4: 2") == 2


def test_images(talk, tmp_path):
    """One goes with the next question only; a damaged one is named, and the conversation goes on."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    code, out, err = talk("/image", f"/image {tmp_path}/cut.png", f"/image {tmp_path}/a.png", "What is this?", "Sure?")
    assert code == 1 and len(out.splitlines()) >= 2
    for text in ("/image needs a file", "cut.png is ", f"[{tmp_path}/a.png: 60 x 40 pixels]"):
        assert text in err


def test_a_line_that_fails(talk):
    """It is named, the conversation goes on, and a script's exit code is 1."""
    code, out, err = talk("/nope", "/undo", "/video", "/video no.mp4", "/save", "/load no", "/help", "List the shapes.")
    assert code == 1 and len(out.splitlines()) == 1
    for text in (
        "sparrow: no command /nope; there are /video, /image, /undo, /memory, /save, /load, /help, /quit",
        "sparrow: there is no turn to undo", "sparrow: /video needs a file", "no.mp4", "sparrow: /save needs a file",
        "take back the last question",
    ):  # fmt: skip
        assert text in err


@pytest.mark.parametrize("presses", [1, 2])
def test_interrupted(talk, monkeypatch, presses):
    """The first Ctrl-C ends the answer, which stays; a second one takes the question back. Both times it goes on."""
    seen = []

    class Presses(chat.Stopwatch):
        def put(self, value):
            super().put(value)
            if self.puts == 4 and not seen:
                seen.append(1)
                for _ in range(presses):
                    os.kill(os.getpid(), signal.SIGINT)
                    threading.Event().wait(0.01)

    monkeypatch.setattr(chat, "Stopwatch", Presses)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = talk("Describe the video in detail.", "/undo", "Describe the video in detail.")
    assert signal.getsignal(signal.SIGINT) is before
    assert code == presses - 1 and len(out.splitlines()[-1].split()) >= 5
    assert ("; interrupted]" in err) == (presses == 1) == ("taken back: Describe" in err)
    assert ("the question is taken back" in err) == (presses == 2) == ("there is no turn to undo" in err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drafter", "x"], "--drafter needs --target"),
        (["--top-k", "-3", "--temperature", "1"], "--top-k must be at least 0 (0 = off), got -3"),
        (["--top-p", "3", "--temperature", "1"], "--top-p must lie in [0, 1], got 3.0"),
        (["--repetition-penalty", "0"], "--repetition-penalty must lie in"),
        (["--target", "x", "--tree", "8-3-4"], "--tree needs --drafter FOLDER"),
        (["--fps", "2", "--num-frames", "8"], "--fps and --num-frames exclude each other"),
        (["--top-k", "5"], "--top-k and --top-p need --temperature above 0"),
        (["--load", "x", "--system", "y"], "--system cannot go with --load"),
        (["--temperature", "-1"], "--temperature must be at least 0"),
        (["--load", "no such file"], "no such file"),
        (["--video", "no such.mp4"], "no such.mp4"),
    ],
)
def test_arguments_that_are_refused(talk, options, message):
    code, out, err = talk("What?", options=options)
    assert code == 1 and not out and message.lower() in err.lower() and "Traceback" not in err
