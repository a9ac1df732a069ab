"""`sparrow eval --clips FILE.jsonl`: prompts of one's own, end to end at tiny size, for both ways of taking frames."""

import json
import shutil

import pytest
import torch
from PIL import Image

import sparrow
from sparrow.cli import eval_clips
from sparrow.cli import main as cli
from sparrow.evaluation import own
from sparrow.evaluation.report.own import cells
from sparrow.files import read_json
from sparrow.miniature.shipped import DEMO
from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow.video import FAMILIES, save_settings
from tests.pairs import write_tiny_pair

LINES = [
    {"video": "clip.mp4", "prompt": "What moves?"},
    {"prompt": "Hello"},
    {"image": "a.png", "prompt": "What is it?"},
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "?"}]},
                  {"role": "assistant", "content": "A ball."}, {"role": "user", "content": "And then?"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_tiny_pair(folder)
    shutil.copy(DEMO, folder / "clip.mp4")
    Image.new("RGB", (60, 60), "red").save(folder / "a.png")
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


def argv(folder, out, *more):
    return ["eval", "--target", str(folder / "target"), "--drafter", f"ours={folder / 'drafter'}", "--clips",
            str(folder / "clips.jsonl"), "--num-frames", "4", "--max-new-tokens", "6", "--tree", "8-3-4",
            "--out", str(out), *more]  # fmt: skip


def test_figures(folder, tmp_path, capsys, monkeypatch):
    """Every prompt once, checked, counted; what is there is not measured again; a stopped run goes on."""
    monkeypatch.setattr(eval_clips.FileClips, "inputs", stops_at(2, eval_clips.FileClips.inputs))
    with pytest.raises(KeyboardInterrupt):
        cli.main(argv(folder, tmp_path, "--temperature", "0", "1", "--debug"))
    monkeypatch.undo()
    assert len(read_json(tmp_path / "clips.json")["rows"]) == 2
    more = ["--temperature", "0", "1"]
    assert cli.main(argv(folder, tmp_path, *more)) == 0
    result = read_json(tmp_path / "clips.json")
    assert [row["clip"] for row in result["rows"]] == [0, 1, 2, 3] and len(result["provenance"]) == 2
    for row, line in zip(result["rows"], LINES, strict=True):
        assert row["asked"] == line and (row["visual_tokens"] > 0) == (line != LINES[1])
        for temperature, systems in row["at"].items():
            assert list(systems) == ["transformers", "plain", "ours 8-3-4"]
            assert systems["ours 8-3-4"]["identical"] and (systems["plain"].get("identical", True))
            assert sum(systems["ours 8-3-4"]["emitted"]) == systems["ours 8-3-4"]["decode_tokens"] <= 5
            assert ("identical" in systems["plain"]) == (temperature == "0")
    made = cells(result)
    assert [c["system"] for c in made if "acceptance_by_depth" in c] == ["ours 8-3-4"] * 2
    greedy = next(c for c in made if c["system"] == "ours 8-3-4" and c["temperature"] == 0)
    emitted = [row["at"]["0"]["ours 8-3-4"]["emitted"] for row in result["rows"]]
    assert greedy["tau"]["value"] == pytest.approx(sum(map(sum, emitted)) / sum(map(len, emitted)), abs=1e-3)
    assert greedy["identical"] == "4 of 4" and greedy["match"] == "100.00%"
    told = (tmp_path / "clips.md").read_text()
    assert "| 0 | ours | 8-3-4 |" in told and "Accepted at each depth" in told and "tau of each prompt" in told
    assert (tmp_path / "clips_speed.png").exists() and (tmp_path / "clips_depth.png").exists()
    capsys.readouterr()
    assert cli.main(["eval", "--render", str(tmp_path)]) == 0
    assert cli.main(argv(folder, tmp_path, "--seed", "3", *more)) == 1
    assert "holds an evaluation with seed=0, this one has 3" in " ".join(capsys.readouterr().err.split())


def stops_at(number, real):
    def inputs(self, clip):
        if clip == number:
            raise KeyboardInterrupt
        return real(self, clip)

    return inputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_token_is_a_fault_in_float32_and_has_its_margin(folder, tmp_path, monkeypatch, dtype):
    """A loop that says another token than the target's: named, and its margin is reported."""
    real = own.one.run

    def wrong(system, *more):
        run = real(system, *more)
        return own.Run(**{**vars(run), "tokens": [*run.tokens[:-1], 5]}) if system.kind == "sparrow" else run

    monkeypatch.setattr(own.one, "run", wrong)

    def parted(model, drafter, **options):
        made = compare(model, drafter, **options)
        return type(made)(**{**vars(made), "mismatches": [mismatch]})

    compare, mismatch = own.compare, sparrow.decoding.compare.Mismatch(5, 7, 5, 0.5, 0.5, 3.0)
    monkeypatch.setattr(own, "compare", parted)
    assert cli.main(argv(folder, tmp_path, "--dtype", dtype)) == (1 if dtype == "float32" else 0)
    result = read_json(tmp_path / "clips.json")
    assert result["rows"][0]["at"]["0"]["ours 8-3-4"]["mismatches"][0]["margin"] == 0.5
    told = (tmp_path / "clips.md").read_text()
    assert "0 of 4" in told and "| 1 | ours 8-3-4 | 5 | 5 for 7 | 0.5 | 0.5 of 3 | no |" in told


def test_a_family_without_patches(tmp_path):
    """LLaVA-OneVision, whose frames are taken otherwise."""
    tokenizer = build_tokenizer()
    ids = {n: tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("im_end", "endoftext", "image_pad", "video_pad")}
    size = TinySize(vocab_size=len(tokenizer), eos_token_id=ids["im_end"], pad_token_id=ids["endoftext"],
                    image_token_id=ids["image_pad"], video_token_id=ids["video_pad"])  # fmt: skip
    model = tiny_target("llava_onevision", size=size)
    model.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    save_settings(FAMILIES["llava_onevision"], tmp_path / "target")
    sparrow.SparrowDrafter.from_target(Target(model)).save_pretrained(tmp_path / "drafter")
    (tmp_path / "clips.jsonl").write_text(json.dumps({"prompt": "Hello"}) + "\n")
    assert cli.main(argv(tmp_path, tmp_path / "out")) == 0
    assert read_json(tmp_path / "out" / "clips.json")["rows"][0]["at"]["0"]["ours 8-3-4"]["identical"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quick"], "--clips FILE takes no --quick"),
        (["--timed", "3"], "--clips FILE takes no --timed"),
        (["--clips", "none.jsonl"], "none.jsonl"),
    ],
)
def test_refused(folder, tmp_path, capsys, more, message):
    assert cli.main(argv(folder, tmp_path, *more)) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_are_looked_for_before_the_weights_are_read(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: pytest.fail("weights were read"))
    chat = [{"role": "user", "content": [{"type": "video", "video": ["f.png", "http://a/b.png"]}]}]
    lines = [{"prompt": "Hello"}, {"video": "none.mp4", "prompt": "x"}, {"images": ["no.png", "a.png"], "prompt": "x"}]
    lines.append({"messages": chat})
    (folder / "faulty.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    faulty = str(folder / "faulty.jsonl")
    for command in (
        argv(folder, tmp_path, "--clips", faulty),
        ["train", "drafter", f"target={folder / 'target'}", f"data.clips={faulty}", f"run={tmp_path / 'run'}"],
    ):
        assert cli.main(command) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "faulty.jsonl, line 2: no such file: " in told and "; 2 more files that lines name" in told
    assert not (tmp_path / "run").exists()
