"""The whole road from a public model to a drafter of one's own, on random weights, from the command line alone.

At a small size it runs with the other tests; at the layer shape of a 7B (docs/seven_b.md) it is slow: two layers, a
small vocabulary, 12 GB of memory, an hour of one core.
"""

import json
import pathlib
import re
import shlex
import shutil

import pytest
import torch
import transformers

from sparrow.cli import main as cli
from sparrow.miniature import shipped as miniature
from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow.training.run import Run
from sparrow.video import FAMILIES, save_settings
from tests.drafters.checkpoints import make

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "seven_b.md"
SMALL = TinySize(hidden_size=64, num_layers=4)


def hub_folder(folder: pathlib.Path, size: TinySize, shard: str) -> transformers.PreTrainedModel:
    """A random Qwen2.5-VL as the hub has it: bfloat16, sharded, with tokenizer, template and video settings."""
    tokenizer = build_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("im_end", "endoftext", "image_pad", "video_pad", "vision_start", "vision_end")
    }
    values = vars(size) | {"eos_token_id": ids.pop("im_end"), "pad_token_id": ids.pop("endoftext")}
    values |= {f"{name.replace('_pad', '')}_token_id": n for name, n in ids.items()}
    values["vocab_size"] = max(size.vocab_size, len(tokenizer))
    model = tiny_target("qwen2_5_vl", size=TinySize(**values), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    save_settings(FAMILIES["qwen2_5_vl"], folder)
    assert len(list(folder.glob("*.safetensors"))) > 1 and (folder / "model.safetensors.index.json").is_file()
    return model


def walk(folder, capsys, monkeypatch, size: TinySize, shard: str, steps: int, rows: int, save: int, parts: int) -> str:
    """Every command of the document, in its order; what they printed."""
    monkeypatch.setenv("SPARROW_CACHE", str(folder / "cache"))
    target, told = folder / "target", []
    model = hub_folder(target, size, shard)
    d, taps = size.hidden_size // size.num_heads, {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
    sizes = (size.hidden_size, d, size.num_heads, size.num_kv_heads, size.intermediate_size)
    make(folder / "public", "EAGLE-3", Target(model), vocabulary=200, sizes=sizes, config=taps)
    del model
    shutil.copy(miniature.DEMO, folder / "clip.mp4")
    lines = [{"video": "clip.mp4", "prompt": "What moves?"}, {"prompt": "Hello"}, {"prompt": "Say it again"}]
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [
        f"target={target}", f"run={folder / 'run'}", f"data.clips={folder / 'clips.jsonl'}", "data.validation=1",
        "data.num_frames=4", "answers.max_new_tokens=8", f"optimisation.steps={steps}",
        f"optimisation.batch_rows={rows}", "optimisation.warmup=2", f"optimisation.save_every={save}",
        "optimisation.log_every=1", "optimisation.checkpointing=true", f"optimisation.accumulate={parts}",
        "drafter.draft_vocab=100", "optimisation.optimiser=adamw", "optimisation.learning_rate=1.0e-4",
        "recipe.mtp_depth=1",
    ]  # fmt: skip

    def run(*argv: str, code: int = 0) -> str:
        assert cli.main(list(argv)) == code, argv
        captured = capsys.readouterr()
        told.append(f"$ sparrow {' '.join(argv)}\n{captured.out}{captured.err}".replace(str(folder) + "/", ""))
        (folder / "walk.txt").write_text("\n".join(told))  # what a walk that is stopped has come to
        return captured.out

    asked = ["--video", str(folder / "clip.mp4"), "--prompt", "What moves?", "--num-frames", "4"]
    short = [*asked, "--max-new-tokens", "8"]
    run("doctor", "--target", str(target))
    run("import", str(folder / "public"), "--target", str(target), "--out", str(folder / "eagle3"))
    run("doctor", "--target", str(target), "--drafter", str(folder / "eagle3"))
    run("generate", "--target", str(target), "--drafter", str(folder / "eagle3"), *short)
    train = ["train", "drafter", "--config", "qwen2_5_vl_7b", *settings]
    assert "Everything fits." in run(*train, "--plan")
    run("train", "answers", "--config", "qwen2_5_vl_7b", *settings)
    plain = Run.log

    def dies(self, **values):
        plain(self, **values)
        if values.get("step") == save + 1:
            raise InterruptedError("killed")

    monkeypatch.setattr(Run, "log", dies)
    run(*train, code=1)
    monkeypatch.setattr(Run, "log", plain)
    run(*train)
    logged = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [*range(1, steps + 1)]
    mine = ["--target", str(target), "--drafter", str(folder / "run" / "drafter"), "--dtype", "float32"]
    run("generate", *mine, *short, "--compare")
    of_clips = ["--clips", str(folder / "clips.jsonl"), "--num-frames", "4", "--max-new-tokens", "8"]
    run("eval", *mine, *of_clips, "--out", str(folder / "run" / "eval"))
    return "\n".join(told)


def test_rehearsal_small(tmp_path, capsys, monkeypatch):
    told = walk(tmp_path, capsys, monkeypatch, SMALL, "300KB", steps=5, rows=80, save=2, parts=2)
    assert "EAGLE-3" in told and re.search(r"new tokens\W+8 in", told)
    walked = [shlex.split(line) for line in told.splitlines() if line.startswith("$ sparrow")]
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("    sparrow "):
            words = line.split()
            options = {word for word in words if word.startswith("--")}
            same = [own for own in walked if own[2:3] == words[1:2] and options <= set(own)]
            assert same, f"the rehearsal has no command such as {line.strip()}"


@pytest.mark.slow
def test_rehearsal_at_the_shape_of_a_7b(tmp_path, capsys, monkeypatch):
    size = TinySize(vocab_size=8192, hidden_size=3584, num_layers=2, num_heads=28, num_kv_heads=4,
                    intermediate_size=18_944)  # fmt: skip
    walk(tmp_path, capsys, monkeypatch, size, "1GB", steps=20, rows=80, save=10, parts=1)
