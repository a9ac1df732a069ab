"""The command line: what it prints, and one clear line with a non-zero exit for everything that goes wrong."""

import errno
import json
import os
import pathlib
import re
import shutil

import av
import pytest
import torch

import sparrow_ext
from sparrow.cli import fitting
from sparrow.cli import generate as cli_generate
from sparrow.cli import main as cli
from sparrow.miniature import shipped as miniature
from sparrow_ext.ops import tree_attention
from tests.pairs import write_miniature_pair, write_tiny_pair

CLIP = str(miniature.DEMO)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """target/ and drafter/."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tiny_pair(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    """A pair that takes the synthetic world's clips."""
    folder = tmp_path_factory.mktemp("small")
    write_miniature_pair(folder)
    return folder


def arguments(checkpoint, *more: str) -> list[str]:
    base = ["generate", "--target", str(checkpoint / "target"), "--video", CLIP, "--prompt", "What moves?"]
    return [*base, "--num-frames", "4", "--max-new-tokens", "12", *more]


def fails(capsys, argv: list[str], *words: str) -> None:
    """Non-zero exit, one line on stderr with the words, no traceback."""
    assert cli.main(argv) not in (0, None)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("sparrow: ")]
    assert len(lines) == 1 and "Traceback" not in captured.err, captured.err
    for word in words:
        assert word in lines[0], lines[0]


def test_damaged_video_is_refused_or_skipped_and_told(checkpoint, capsys, tmp_path):
    with av.open(CLIP) as container:
        packet = [p for p in container.demux(video=0) if p.size][60]
    data, path = bytearray(pathlib.Path(CLIP).read_bytes()), tmp_path / "bad.mp4"
    data[packet.pos : packet.pos + packet.size] = bytes(range(1, 256)) * (packet.size // 255) + bytes(packet.size % 255)
    path.write_bytes(data)
    argv = arguments(checkpoint, "--num-frames", "30")
    argv[argv.index(CLIP)] = str(path)
    fails(capsys, argv, "bad.mp4 is truncated or corrupt", "s is damaged")
    assert cli.main([*argv, "--on-damage", "skip"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"sparrow: .*bad\.mp4: skipped: frames? \d+.*cannot be decoded whole", captured.err)


def test_generate_with_drafter_and_comparison(checkpoint, capsys, tmp_path):
    stats = tmp_path / "stats.json"
    argv = arguments(
        checkpoint, "--drafter", str(checkpoint / "drafter"), "--tree", "25-5-8", "--compare", "--json", str(stats)
    )
    assert cli.main(argv) == 0
    captured = capsys.readouterr()
    assert "identical to plain decoding: yes (tokens 12 and 12" in captured.out
    assert "tau" in captured.err and "speed-up" in captured.err
    values = json.loads(stats.read_text())
    assert values["new_tokens"] == 12 and values["tree"] == "25-5-8" and values["visual_tokens"] > 50


def test_one_token_has_no_rounds_to_report(checkpoint, capsys, tmp_path):
    stats = tmp_path / "stats.json"
    assert cli.main(arguments(checkpoint, "--max-new-tokens", "1", "--compare", "--json", str(stats))) == 0
    shown = capsys.readouterr().err
    assert "1 in 0 rounds" in shown and "nan" not in shown and "end to end" in shown
    assert "NaN" not in stats.read_text() and json.loads(stats.read_text())["tau"] is None


def test_statistics_that_find_no_room(checkpoint, capsys, tmp_path, monkeypatch):
    """One line that names the file, and the older figures are still there."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "stats.json").write_text('{"precious": 1}')
    monkeypatch.setattr(os, "fsync", full)
    argv = arguments(checkpoint, "--max-new-tokens", "2", "--json", str(tmp_path / "stats.json"))
    fails(capsys, argv, f"No space left on device: '{tmp_path}/stats.json'")
    assert (tmp_path / "stats.json").read_text() == '{"precious": 1}' and os.listdir(tmp_path) == ["stats.json"]


def test_text_follows_the_video(checkpoint, capsys, tmp_path):
    import numpy as np

    assert cli.main(arguments(checkpoint)) == 0
    first = capsys.readouterr().out
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), dtype=np.uint8))
    argv = arguments(checkpoint)
    argv[argv.index(CLIP)] = str(tmp_path / "noise.npy")
    assert cli.main(argv) == 0
    assert capsys.readouterr().out not in ("", first)


def test_sampling_is_seeded(checkpoint, capsys):
    texts = []
    for seed, drafter in (("1", None), ("1", str(checkpoint / "drafter")), ("2", None)):
        more = [] if drafter is None else ["--drafter", drafter]
        assert cli.main(arguments(checkpoint, "--temperature", "1.5", "--seed", seed, *more)) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_wrong_output_exits_with_1(checkpoint, capsys, monkeypatch):
    def wrong(*args, **kwargs):
        out, lse = tree_attention.tree_attention(*args, **kwargs)
        return -out, lse

    monkeypatch.setattr(sparrow_ext, "tree_attention", wrong)
    assert cli.main(arguments(checkpoint, "--drafter", str(checkpoint / "drafter"), "--compare")) == 1
    assert "identical to plain decoding: no" in capsys.readouterr().out


def test_missing_files(checkpoint, capsys, tmp_path):
    fails(capsys, ["generate", "--target", "/nowhere", "--prompt", "x"], "--target", "/nowhere")
    argv = arguments(checkpoint)
    argv[argv.index(CLIP)] = "/no/clip.mp4"
    fails(capsys, argv, "--video", "/no/clip.mp4")
    fails(capsys, arguments(checkpoint, "--drafter", str(tmp_path)), "config.json is missing", str(tmp_path))


def test_broken_video(checkpoint, capsys, tmp_path):
    data = pathlib.Path(CLIP).read_bytes()
    for name, content in (("text.mp4", b"no video at all"), ("cut.mp4", data[: len(data) // 3]), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(content)
        argv = arguments(checkpoint)
        argv[argv.index(CLIP)] = str(tmp_path / name)
        fails(capsys, argv, name)


def test_wrong_model_family(checkpoint, capsys, tmp_path):
    shutil.copytree(checkpoint / "target", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["model_type"] = "llama"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    fails(capsys, ["generate", "--target", str(tmp_path / "other"), "--prompt", "x"], "Qwen2.5-VL", "'llama'")


def test_drafter_of_another_target(checkpoint, capsys, tmp_path):
    shutil.copytree(checkpoint / "drafter", tmp_path / "drafter")
    file = tmp_path / "drafter" / "config.json"
    file.write_text(file.read_text().replace('"num_layers": 4', '"num_layers": 5'))
    fails(capsys, arguments(checkpoint, "--drafter", str(tmp_path / "drafter")), "num_layers=5", "this one has 4")


def test_weights_that_are_not_safetensors(checkpoint, capsys, tmp_path):
    shutil.copytree(checkpoint / "target", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    fails(capsys, ["generate", "--target", str(tmp_path / "pickled"), "--prompt", "x"], "safetensors")
    (tmp_path / "pickled" / "model.safetensors").write_bytes(b"hello")
    fails(capsys, ["generate", "--target", str(tmp_path / "pickled"), "--prompt", "x"], "pickled", "cut short")


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (KeyboardInterrupt(), ["interrupted"], 130),
        (torch.OutOfMemoryError("CUDA out of memory."), ["out of memory", "--num-frames"], 1),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            ["out of memory"],
            1,
        ),
        (RuntimeError("something\nodd"), ["RuntimeError: something odd", "--debug"], 1),
    ],
)
def test_failures_while_decoding(checkpoint, capsys, monkeypatch, error, words, code):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli_generate, "generate", broken)
    assert cli.main(arguments(checkpoint)) == code
    captured = capsys.readouterr()
    line = [x for x in captured.err.splitlines() if x.startswith("sparrow: ")]
    assert len(line) == 1 and all(w in line[0] for w in words) and "Traceback" not in captured.err
    with pytest.raises(type(error)):
        cli.main([*arguments(checkpoint), "--debug"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--compare", "--temperature", "1"], ["--compare is for greedy"]),
        (["--temperature", "-1"], ["--temperature must be at least 0"]),
        (["--temperature", "nan"], ["--temperature must be at least 0 and finite, got nan"]),
        (["--temperature", "inf"], ["--temperature must be at least 0 and finite, got inf"]),
        (["--temperature", "1", "--top-p", "1.5"], ["--top-p must lie in [0, 1], got 1.5"]),
        (["--temperature", "1", "--top-k", "-1"], ["--top-k must be at least 0 (0 = off), got -1"]),
        (["--temperature", "1", "--seed", str(2**63)], ["--seed must be an integer of 64 bits"]),
        (["--top-p", "0.5"], ["--top-k and --top-p need --temperature above 0"]),
        (["--json", "/no/such/folder/x.json"], ["--json: no such folder: /no/such/folder"]),
        (["--json", "/"], ["--json must be a file, got the folder /"]),
        (["--device", "tpu"], ["--device must be cpu, cuda or cuda:N, got tpu"]),
        (["--device", "meta"], ["--device must be cpu, cuda or cuda:N, got meta"]),
        (["--device", "cuda"], ["--device cuda"]),
        (["--num-frames", "4000"], ["4000"]),
        (["--drafter", "TARGET"], ["--drafter: ", "target is a target, not a drafter"]),
        (["--drafter", "/nowhere"], ["--drafter: no such drafter folder: '/nowhere'"]),
        (["--drafter", "PAIR"], ["--drafter: ", "give ", "drafter"]),
        (["--target", "DRAFTER"], ["--target: ", "drafter is a drafter, not a target"]),
        (["--target", "PAIR"], ["--target: ", "give ", "target"]),
        (["--json", "/dev/full"], ["No space left on device", "/dev/full"]),
    ],
)
def test_bad_options(checkpoint, capsys, more, words):
    places = {"TARGET": checkpoint / "target", "DRAFTER": checkpoint / "drafter", "PAIR": checkpoint}
    fails(capsys, arguments(checkpoint, *(str(places.get(word, word)) for word in more)), *words)


@pytest.mark.parametrize(
    "more", [["--tree", "30x4"], ["--tree", "300-4-8"], ["--max-new-tokens", "0"], ["--dtype", "int8"]]
)
def test_bad_words(checkpoint, capsys, more):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments(checkpoint, *more))
    assert stop.value.code == 2 and more[0] in capsys.readouterr().err


def test_doctor(checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["doctor", "--target", str(checkpoint / "target")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-2].startswith(f"  sparrow generate --target {checkpoint / 'target'}")
    assert "CPU kernels" in out and out.count("identical: yes") == 2 and "Qwen2.5-VL, 1 safetensors" in out
    fails(capsys, ["doctor", "--target", "/nowhere"], "/nowhere")


def test_doctor_says_what_fits(checkpoint, capsys, monkeypatch):
    """Target and drafter together; another target's drafter, and too little memory, are exit code 1."""
    monkeypatch.setenv("COLUMNS", "200")
    pair = ["--target", str(checkpoint / "target"), "--drafter", str(checkpoint / "drafter")]
    rows, fits = fitting.findings(checkpoint / "target", checkpoint / "drafter", torch.device("cpu"))
    told = dict(rows)
    assert fits and told["drafter"].startswith("for this target, text rows only, positions text")
    assert "M-RoPE" in told["numbering"] and "fits" in told["memory"]
    assert told["memory: cache of 25000 tokens"] == f"{2 * 4 * 2 * 32 * 4 * 25000 / 2**30:.2f} GiB"
    monkeypatch.setattr(fitting, "free_memory", lambda _: 2**20)
    assert cli.main(["doctor", *pair]) == 1
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())  # a cell may be broken
    assert "does not fit: " in out and "GiB too much" in out and "it does not fit" in out
    monkeypatch.undo()
    other = {"target": {"family": "llava_onevision"}}
    config = json.loads((checkpoint / "drafter" / "config.json").read_text()) | other
    (checkpoint / "other").mkdir()
    (checkpoint / "other" / "config.json").write_text(json.dumps(config))
    shutil.copy(checkpoint / "drafter" / "model.safetensors", checkpoint / "other")
    rows, fits = fitting.findings(checkpoint / "target", checkpoint / "other", torch.device("cpu"))
    assert not fits and "for another target (family differs)" in dict(rows)["drafter"]
    fails(capsys, ["doctor", "--drafter", "x"], "--drafter needs --target")


def test_doctor_says_no(capsys, monkeypatch):
    def wrong(*args, **kwargs):
        out, lse = tree_attention.tree_attention(*args, **kwargs)
        return -out, lse

    monkeypatch.setattr(sparrow_ext, "tree_attention", wrong)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "identical: no" in " ".join(out.replace("│", " ").split()) and "do not use it" in out


def test_demo(small, capsys):
    assert cli.main(["demo", "--folder", str(small), "--max-new-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert "1024 visual tokens" in out and "identical to plain decoding: yes (tokens 16 and 16" in out
    assert "16 tokens" in out and "tau" in out and "errs in what it sees" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(" ") and "." in line}
    assert len(rows["transformers"]) == 2 and len(rows["plain"]) == 5 and len(rows["sparrow"]) == 6
    assert [float(x) > 0 for x in rows["transformers"]] == [True, True]
    assert [cell.endswith("x") for cell in rows["sparrow"]] == [False, True, True, False, True, True]


def test_demo_says_no(small, capsys, monkeypatch, tmp_path):
    def wrong(*args, **kwargs):
        out, lse = tree_attention.tree_attention(*args, **kwargs)
        return -out, lse

    fails(capsys, ["demo", "--folder", str(tmp_path)], "target/ and drafter/", str(tmp_path))
    monkeypatch.setattr(sparrow_ext, "tree_attention", wrong)
    assert cli.main(["demo", "--folder", str(small), "--max-new-tokens", "16"]) == 1
    assert "identical to plain decoding: no" in capsys.readouterr().out
