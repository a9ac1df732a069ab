"""Public drafters from the command line: `sparrow import`, and --drafter that imports by itself; hub ids offline."""

import json

import pytest

from sparrow.cli import eval as cli_eval
from sparrow.cli import main as cli
from sparrow.cli import places
from sparrow.cli.parser import parse
from sparrow.drafters.network import SparrowDrafter
from sparrow.miniature import shipped as miniature
from sparrow.targets.adapter import Target
from tests.cli.test_cli import fails
from tests.drafters.checkpoints import make
from tests.pairs import miniature_pair, write_miniature_pair

CLIP = str(miniature.DEMO)
SIZES = {"num_attention_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """target/, drafter/ and the checkpoint public/ for that target."""
    folder = tmp_path_factory.mktemp("pair")
    write_miniature_pair(folder)
    make(folder / "public", "MSD", Target(miniature_pair()[0]), pickled=True, config=SIZES)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def argv(pair, *more: str) -> list[str]:
    base = ["generate", "--target", str(pair / "target"), "--video", CLIP, "--prompt", "What moves?"]
    return [*base, "--num-frames", "4", "--max-new-tokens", "12", *more]


@pytest.mark.parametrize(("more", "seen"), [([], "none"), (["--no-vata", "--tree", "12-3-4"], "rows")])
def test_import_then_generate(pair, tmp_path, capsys, more, seen):
    out = tmp_path / "drafter"
    arguments = ["import", str(pair / "public"), "--target", str(pair / "target"), "--out", str(out), *more]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    config = SparrowDrafter.from_pretrained(out).config
    assert config.visual == seen and config.tree == ("12-3-4" if more else "59-6-10")
    assert "EAGLE or MSD" in told and f"--drafter {out}" in told and f"tree {config.tree}" in told
    assert cli.main(argv(pair, "--drafter", str(out), "--compare")) == 0
    assert "identical to plain decoding: yes" in capsys.readouterr().out


def test_generate_imports_once(pair, capsys, cache, monkeypatch):
    public = str(pair / "public")
    assert cli.main(argv(pair, "--drafter", public, "--compare")) == 0
    captured = capsys.readouterr()
    assert "identical to plain decoding: yes" in captured.out and "EAGLE or MSD, text rows only" in captured.err
    made = list((cache / "drafters").glob("public-*"))
    assert len(made) == 1 and SparrowDrafter.from_pretrained(made[0]).config.visual == "none"
    monkeypatch.setattr(places, "import_drafter", None)
    assert cli.main(argv(pair, "--drafter", public)) == 0
    arguments = cli_eval.with_drafters(
        parse(["eval", "--target", str(pair / "target"), "--drafter", f"a={public}", "--drafter", "shipped"])
    )
    assert arguments.drafter == (f"a={made[0]}", "shipped=shipped")
    assert next(arm for arm in cli_eval.changed(cli_eval.table_of("main", True), arguments).arms).label == "a"


def test_another_targets_checkpoint(pair, tmp_path, capsys):
    other = miniature_pair(seed=1)[0]
    other.save_pretrained(tmp_path / "other")
    arguments = ["import", str(pair / "public"), "--target", str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    fails(capsys, arguments, "was made for another target: row 0 of embed_tokens.weight is not the target's")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--target", "--drafter"])
def test_hub_ids_without_a_network(pair, capsys, option):
    arguments = argv(pair, "--drafter", str(pair / "drafter"))
    arguments[arguments.index(option) + 1] = "nobody/nothing"
    words = f"{option}: nobody/nothing is no folder here and cannot be had from the hub", "`hf download nobody/nothing`"
    fails(capsys, arguments, *words)
    if option == "--drafter":
        fails(capsys, ["eval", "--drafter", "nobody/nothing"], "nobody/nothing is no folder here and cannot be had")


def test_hub_ids_in_the_cache(pair, tmp_path, capsys, monkeypatch):
    """What the hub's cache holds is taken without a network; of a repository with a pickle alone, the pickle."""
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, "pytorch_model.bin" in allow_patterns))
        return str(pair / name.split("/")[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    arguments = argv(pair, "--drafter", "some/public")
    arguments[arguments.index("--target") + 1] = "some/target"
    assert cli.main(arguments) == 0
    assert asked == [("some/target", False), ("some/public", False), ("some/public", True)]


def test_a_target_is_no_drafter(pair, tmp_path, capsys):
    fails(capsys, argv(pair, "--drafter", str(pair / "target")), "target is a target, not a drafter")
    config = json.loads((pair / "public" / "config.json").read_text())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps(config))
    fails(capsys, argv(pair, "--drafter", str(tmp_path / "empty")), "no safetensors in")
