"""`sparrow train` from the shell: a folder and a file of clips in, a drafter out that generates; clear errors."""

import json
import pathlib

import pytest
import yaml

from sparrow.cli import main as cli
from sparrow.cli import train as cli_train
from sparrow.miniature.shipped import DEMO
from sparrow.training.config import ConfigError, load_config
from sparrow.training.recipe import DrafterTraining, Recipe
from sparrow.training.run import Run, learning_rate
from tests.pairs import write_tiny_pair

ASSET = pathlib.Path(cli.__file__).parents[1] / "assets" / "recipes" / "sparrow.yaml"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A target, three clips, and settings for a short run."""
    folder = tmp_path_factory.mktemp("cli")
    write_tiny_pair(folder)
    lines = [{"video": str(DEMO), "prompt": text} for text in ("What moves?", "What is it?", "Where?")]
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "run": str(folder / "run"), "target": str(folder / "target"), "device": "cpu",
        "data": {"clips": str(folder / "clips.jsonl"), "num_frames": 4, "validation": 1},
        "answers": {"max_new_tokens": 8},
        "optimisation": {"steps": 2, "warmup": 1, "batch_rows": 2000, "log_every": 1},
    }  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_trains_and_generates(folder, capsys):
    config = str(folder / "train.yaml")
    assert cli.main(["train", "answers", "--config", config]) == 0
    assert "3 answers, " in capsys.readouterr().err
    answers = [json.loads(line) for line in (folder / "run/answers/answers-0.jsonl").read_text().splitlines()]
    assert [a["asked"]["prompt"] for a in sorted(answers, key=lambda a: a["clip"])] == [
        "What moves?", "What is it?", "Where?",
    ]  # fmt: skip
    assert all(a["ids"] for a in answers)
    assert cli.main(["train", "drafter", "--config", config, "recipe.mtp_depth=2"]) == 0
    saved = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert saved["recipe"]["mtp_depth"] == 2 and saved["recipe"]["noise"] == 0.2
    rows = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2] and [r["tau"] for r in rows if "tau" in r]
    assert (folder / "run/curves.png").exists()
    argv = ["generate", "--target", str(folder / "target"), "--drafter", str(folder / "run/drafter"), "--compare"]
    argv += ["--video", str(DEMO), "--prompt", "Where?", "--num-frames", "4", "--max-new-tokens", "8"]
    assert cli.main(argv) == 0
    assert "identical to plain decoding: yes" in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("drafter.layer=eagle3", "drafter.visual=states", "drafter.positions=sequence",
                                      "recipe.visual_layer=0")])  # fmt: skip
def test_trains_on_texts_beside_videos(folder, tmp_path, more):
    lines = [{"prompt": "Tell a story."}, {"video": str(DEMO), "prompt": "What moves?"}, {"prompt": "Why?"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = [f"data.clips={tmp_path / 'mixed.jsonl'}", f"run={tmp_path / 'run'}", *more]
    assert cli.main(["train", "drafter", "--config", str(folder / "train.yaml"), *overrides]) == 0
    answers = [json.loads(line) for line in (tmp_path / "run/answers/answers-0.jsonl").read_text().splitlines()]
    answers = sorted(answers, key=lambda a: a["clip"])
    assert [a["asked"] for a in answers] == lines and [a["visual_tokens"] > 0 for a in answers] == [False, True, False]
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2] and all(r["loss"] > 0 for r in rows if "loss" in r)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.mtp_dept=2", "unknown setting recipe.mtp_dept; there are recipe.visual"),
        ("recipe.mtp_depth=-1", "recipe.mtp_depth must be at least 0, got -1"),
        ("recipe.mtp_attention=all", "recipe.mtp_attention must be one of paper, tree, got 'all'"),
        ("recipe.visual_positions=target", "visual_positions=target needs drafter.positions=target"),
        ("drafter.fused_layers=[1]", "recipe.feature must be 0 with drafter.fused_layers, got 0.1"),
        ("recipe.cross_entropy=0", "recipe.cross_entropy and recipe.acceptance must not both be 0"),
        ("answers.temperatures=[0.0,-1.0]", "answers.temperatures must be distinct numbers >= 0"),
        ("answers.temperatures=0.5", "answers.temperatures must be a list"),
        ("optimisation.steps=many", "optimisation.steps must be int"),
        ("optimisation.sharding=zero", "optimisation.sharding must be one of ddp, fsdp"),
        ("steps", "an override must look like a.b=c"),
        ("target=/no/such/folder", "no such model folder"),
        ("data.clips=/no/such/file", "No such file"),
        ("device=nothing", "nothing"),
    ],
)
def test_bad_settings_are_one_line(folder, capsys, override, message):
    assert cli.main(["train", "drafter", "--config", str(folder / "train.yaml"), override]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"video": "a.mp4"}', 'line 1 must be {"prompt": text}, with "video": path, "image": path'),
        ('\n["a", "b"]', "line 2 must be"),
        ("\n", "must hold at least one line"),
    ],
)
def test_bad_files_of_clips(folder, tmp_path, capsys, text, message):
    (tmp_path / "clips.jsonl").write_text(text)
    override = f"data.clips={tmp_path / 'clips.jsonl'}"
    assert cli.main(["train", "answers", "--config", str(folder / "train.yaml"), override]) == 1
    assert message in capsys.readouterr().err


def test_other_data_is_not_mixed_with_old_answers(folder, capsys):
    file = folder / "clips.jsonl"
    before = file.read_text()
    file.write_text(before.replace("Where?", "When?"))
    assert cli.main(["train", "answers", "--config", str(folder / "train.yaml")]) == 1
    file.write_text(before)
    assert "clip 2 was answered as" in capsys.readouterr().err
    assert cli.main(["train", "answers", "--config", str(folder / "train.yaml"), "data.num_frames=6"]) == 1
    assert "'num_frames': 4" in capsys.readouterr().err


def test_a_file_of_clips_may_move(folder, tmp_path):
    """Its lines are compared, not its place: nothing is answered again."""
    file = folder / "run/answers/answers-0.jsonl"
    before = file.read_bytes()
    (tmp_path / "moved.jsonl").write_bytes((folder / "clips.jsonl").read_bytes())
    argv = ["train", "answers", "--config", str(folder / "train.yaml"), f"data.clips={tmp_path / 'moved.jsonl'}"]
    assert cli.main(argv) == 0 and file.read_bytes() == before


def test_synthetic_clips_are_drawn_by_number(folder):
    """Frames, rate and prompt reach the model's inputs; the numbers count from the first."""
    import types

    import numpy as np
    from transformers import AutoTokenizer

    from sparrow.training.clips import SyntheticClips
    from sparrow.video import load_settings

    def draw(number):
        frames = np.full((4, 56, 56, 3), number % 256, dtype=np.uint8)
        return types.SimpleNamespace(frames=frames, fps=2.0, prompt=f"Number {number}?")

    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    clips = SyntheticClips(draw, load_settings(folder / "target"), tokenizer, 3, 70)
    inputs = clips.inputs(2)
    assert len(clips) == 3 and clips.describe(2) == {"number": 72}
    assert "Number 72?" in tokenizer.decode(inputs["input_ids"][0])
    assert inputs["second_per_grid_ts"].tolist() == [1.0] and inputs["pixel_values_videos"].std() < 2
    assert not bool((clips.inputs(1)["pixel_values_videos"] == inputs["pixel_values_videos"]).all())


def test_the_shipped_settings_are_valid():
    """Text only with three passes; with the overrides in the file's head the paper's recipe, which the defaults are."""
    config = load_config(DrafterTraining, "sparrow")
    assert config == load_config(DrafterTraining, ASSET)
    assert not config.recipe.visual and config.recipe.mtp_depth == 3 and config.drafter.hidden_layer == -1
    trained = json.loads((ROOT / "bench" / "arms" / "paper" / "training.json").read_text())["overrides"].split()
    paper = load_config(DrafterTraining, "paper")
    assert paper == load_config(DrafterTraining, "sparrow", trained)  # what the arm was trained with
    assert paper.recipe == Recipe() and (paper.optimisation.optimiser, paper.optimisation.batch_rows) == ("adamw", 4096)
    seven = load_config(DrafterTraining, "qwen2_5_vl_7b")
    other = load_config(DrafterTraining, "llava_onevision_7b")
    assert (other.recipe, other.optimisation) == (seven.recipe, seven.optimisation)
    assert seven.recipe == config.recipe and seven.dtype == "bfloat16" and seven.drafter.draft_vocab == 32000
    names = "llava_onevision_7b, paper, qwen2_5_vl_7b, sparrow"
    with pytest.raises(FileNotFoundError, match=f"recipes in the package are {names}$"):
        load_config(DrafterTraining, "nothing")
    with pytest.raises(ConfigError, match="unknown setting nothing"):
        load_config(DrafterTraining, ASSET, ["nothing=1"])


def test_learning_rate_and_run(tmp_path):
    config = load_config(DrafterTraining, ASSET)
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)]) and max(rates) <= 1
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.02 <= rates[-1] < 0.03
    run = Run(tmp_path / "r", config)
    run.log(step=1, loss=2.0)
    run.save(step=1)
    run.log(step=2, loss=1.0)
    reader = Run(tmp_path / "r", config, main=False)
    reader.log(step=9)
    assert reader.load() == {"step": 1} and len(run.history()) == 2  # another process changes no file
    assert run.load() == {"step": 1} and run.history() == [{"step": 1, "loss": 2.0}]


def test_answers_and_drafter_are_documented(capsys):
    for command in ("drafter", "answers"):
        with pytest.raises(SystemExit):
            cli.main(["train", command, "--help"])
        assert "--config" in capsys.readouterr().out
    assert cli_train.run_answers.__doc__
