"""Documents: what they name exists, lines and abbreviations are readable, results shown are kept and no others."""

import json
import pathlib
import re
import subprocess
import zlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=[d.name for d in DOCUMENTS])
SOURCES = ("csrc", "sparrow_ext", "python", "bench", "tests", "tools")
MADE_BY_TOOLS = {"build", ".venv"}
LINE = 120
EXPANSIONS = {
    "HSR": "hidden-state reuse",
    "VATA": "text-anchored window attention",
    "IVSB": "intermediate-layer visual state bridging",
    "MTP": "multi-token prediction",
    "DSR": "decoding speed-up ratio",
    "ESR": "end-to-end speed-up ratio",
    "tau": "tokens per round",
}


# --- lines ---


def long_lines(text: str) -> list[str]:
    """Lines over LINE characters. Rows of tables may be longer; of links and URLs only the words count."""
    faults = []
    for line in text.splitlines():
        words = re.sub(r"\]\([^)]*\)|https?://\S+", "", line)
        if not line.startswith("|") and len(words) > LINE:
            faults.append(line)
    return faults


@every_document
def test_lines_are_short(document):
    assert not long_lines(document.read_text())


def test_long_lines():
    row, url, link = "| " + "x" * 150 + " |", "see https://" + "x" * 150, "[a](" + "x" * 150 + ")"
    assert not long_lines("\n".join(["x" * LINE, row, url, link]))
    assert long_lines("\n".join(["x" * (LINE + 1), row])) == ["x" * (LINE + 1)]
    assert long_lines(link + "x" * LINE) and long_lines("    " + "x" * LINE)


# --- abbreviations ---


def unexplained(text: str) -> list[str]:
    """The abbreviations whose first paragraph does not hold their expansion; code does not count as a use."""
    text = re.sub(r"^```.*?^```|^(?:    |\t).*$", "", text, flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n", re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text))
    faults = []
    for short, meaning in EXPANSIONS.items():
        uses = (p for p in paragraphs if re.search(rf"\b{short}\b", p))
        if (first := next(uses, None)) is not None and meaning not in " ".join(first.lower().split()):
            faults.append(short)
    return faults


@every_document
def test_abbreviations_are_spelled_out_at_first_use(document):
    assert not unexplained(document.read_text())


def test_unexplained():
    assert unexplained("VATA first.\n\nVATA (text-anchored window attention).") == ["VATA"]
    assert not unexplained(
        "With `tau` and `VATA`:\n\n    MTP\n\n```\nDSR\n```\n\nMulti-token\nprediction (MTP).\n\nMTP"
    )
    assert unexplained("![tau](tau.png)\n\ntau is tokens per round") == ["tau"]


# --- what is named exists ---


def repository_paths(text: str) -> list[str]:
    """What stands in backticks and looks like a path of this repository; <op> stands for an operator."""
    top = {p.name for p in ROOT.iterdir()} - MADE_BY_TOOLS
    found = []
    for quoted in re.findall(r"`([\w.*/<>-]+)`", text):
        first, *rest = quoted.split("/")
        source = not rest and re.fullmatch(r"[\w*<>-]+\.(py|md|toml|h|cpp|cuh?)", quoted)
        if (rest and first in top) or source:
            found.append(quoted.replace("<op>", "tree_mask"))
    return found


@every_document
def test_documents_name_files_that_exist(document):
    faults = []
    for path in repository_paths(document.read_text()):
        folders = [ROOT] if "/" in path else [ROOT, *(p for f in SOURCES for p in (ROOT / f).glob("**"))]
        if not any(True for folder in folders for _ in folder.glob(path.rstrip("/"))):
            faults.append(path)
    assert not faults, f"{document.name} names {faults}"


def test_repository_paths():
    text = (
        "`csrc/ops/<op>.h`, `csrc/gone.h`, `tests/`, `a/b`, `torch.ops.sparrow`, `setup.py`, `build/dev`, `pip install`"
    )
    assert repository_paths(text) == ["csrc/ops/tree_mask.h", "csrc/gone.h", "tests/", "setup.py"]


def links(document: pathlib.Path) -> list[pathlib.Path]:
    """Where its links and pictures lead to in this repository; anchors and the web are left out."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    return [(document.parent / target).resolve() for target in targets if "://" not in target]


@every_document
def test_links_lead_somewhere(document):
    assert not [target for target in links(document) if not target.exists()]


SETTINGS = {"drafter", "recipe", "answers", "states", "optimisation"}  # the sections of a training config
CODE = [p for p in sorted((ROOT / "python/sparrow").rglob("*.py")) if "miniature" not in p.parts]


def defines(path: pathlib.Path, name: str) -> bool:
    return re.search(rf"^\s*(?:def {name}\b|class {name}\b|{name}\s*[:=])", path.read_text(), re.MULTILINE) is not None


def unknown_names(text: str) -> list[str]:
    """The `module.name`, `Class.name` and `section.setting` in backticks that sparrow does not have."""
    classes = {name for path in CODE for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)}
    faults = []
    for owner, name in re.findall(r"`([A-Za-z]\w*)\.(\w+)[`=]", text):
        if owner in classes:
            files = [path for path in CODE if re.search(rf"^class {owner}\b", path.read_text(), re.MULTILINE)]
        else:
            files = [
                path
                for path in CODE
                if (path.stem in ("recipe", "config") if owner in SETTINGS else path.stem == owner)
            ]
        if name not in ("py", "md", "json") and not any(defines(path, name) for path in files):
            faults.append(f"{owner}.{name}")
    return faults


def test_rivals_names_code_that_exists():
    assert not unknown_names((ROOT / "docs/rivals.md").read_text())
    text = "`visual.gone`, `Target.prefill`, `Target.gone`, `gone.x`, `passes.py`, `recipe.gone=1`, `states.folder`"
    assert unknown_names(text) == ["visual.gone", "Target.gone", "gone.x", "recipe.gone"]


# --- results ---


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says what is committed")
    return listed.stdout.splitlines()


def test_pictures_and_tables_are_shown():
    """Of results only the JSON is kept for its own sake: Markdown and pictures are there for a document."""
    shown = {target for document in DOCUMENTS for target in links(document)}
    made = [p for p in tracked() if p.endswith(".png") or (p.startswith("bench/results") and p.endswith(".md"))]
    assert made and not [p for p in made if (ROOT / p).exists() and ROOT / p not in shown]


RESULTS = sorted((ROOT / "bench/results").rglob("*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: f.relative_to(ROOT / "bench/results").as_posix())
def test_a_result_says_how_it_was_made(file):
    made = json.loads(file.read_text())["provenance"]
    for run in made if isinstance(made, list) else [made]:
        assert re.fullmatch("[0-9a-f]{40}", run["commit"]), run
        assert all(run[key] for key in ("command", "date", "cpu", "isa", "threads", "python", "torch", "transformers"))


def test_documents_are_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        if (document := todo.pop()) not in reached and document in DOCUMENTS:
            reached.add(document)
            todo += links(document)
    assert set(DOCUMENTS) - reached <= {ROOT / "CHANGELOG.md"}


WHEEL_MB = 12


def test_the_wheel_stays_small():
    """What setup.py ships, compressed as a wheel is: sources, assets and the library."""
    data = [p for p in tracked() if p.startswith(("python/sparrow/", "sparrow_ext/"))]
    files = [ROOT / "sparrow_ext/libsparrow.so", *(ROOT / p for p in data if (ROOT / p).exists())]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < WHEEL_MB * 1e6
    assert not [p for p in data if "/arms/" in p]
