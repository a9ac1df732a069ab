"""The tests that other versions of torch and transformers could break, in fresh environments with these versions.

    python tools/versions.py                       all of COMBINATIONS, or with --torch those of one torch
    python tools/versions.py --table               README's table of the committed result
    python tools/versions.py --drift               a short run under the newest transformers, over this environment

The first builds one environment and one library per torch under build/versions (up to 10 GB, removed afterwards), makes
the golden video tensors anew with each transformers' own processors, and writes bench/results/versions.json. It fails
where any test does. The last prints one line and never fails.
"""

import argparse
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from xml.etree import ElementTree

from sparrow.files import write_json

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "versions"
RESULT = ROOT / "bench" / "results" / "versions.json"
NEWEST = "newest"
COMBINATIONS = {  # torch: transformers; what the default index has, so on Linux torch with CUDA libraries
    "2.10.0": ["5.18.0", NEWEST],
    "2.11.0": ["5.18.0", NEWEST],
    "2.13.0": ["5.18.0", "5.23.0", NEWEST],
    NEWEST: ["5.18.0", NEWEST],
}
TESTS = {  # file in tests/, wherever it lies there: -k
    "test_lossless.py": "",
    "test_prefill.py": "",
    "test_session.py": "",
    "test_batches.py": "",
    "test_prefixes.py": "",
    "test_video.py": "",
    "test_images.py": "",
    "test_image_files.py": "",
    "test_draft_state.py": "",
    "test_sequences.py": "",
    "test_trainer.py": "test_decoding_gives_the_logits_of_training",
    "test_training.py": "test_training_forward_is_the_models_own",
    "test_versions.py": "",
}
SHORT = "test_random_drafter or test_stop_strings or test_end_of_sequence"
FACTS = """import importlib.metadata as m, json, platform, torch, sparrow_ext
names = ("transformers", "tokenizers", "huggingface-hub", "numpy", "av")
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
    "cuda_kernels": sparrow_ext.has_cuda_kernels(), **{n: m.version(n) for n in names}}))"""


def run(*command: object, folder: pathlib.Path = ROOT, check: bool = True, **more) -> subprocess.CompletedProcess:
    """The command, without this process' environment; exact versions are asked for, so no machine's pip constraints."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PIP_CONSTRAINT": os.devnull, "HF_HUB_OFFLINE": "1"} | more.pop("env", {})
    return subprocess.run([str(part) for part in command], cwd=folder, env=environment, check=check, **more)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def requirement(name: str, version: str) -> str:
    return name if version == NEWEST else f"{name}=={version}"


def other_requirements() -> list[str]:
    """All that building and testing needs but torch and transformers, as pyproject.toml says it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
    ]
    return [line for line in wanted if not line.startswith(("torch", "transformers"))]


def copy_of_the_tree(folder: pathlib.Path) -> None:
    """What git tracks or would add: nothing that was built, and the tests may write into it."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", stdout=subprocess.PIPE)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def environment_of(torch: str, transformers: str, source: pathlib.Path) -> pathlib.Path:
    """A new virtual environment with the library built for its torch in `source`; its Python."""
    home = WORK / f"torch-{torch}"
    shutil.rmtree(home, ignore_errors=True)
    run(sys.executable, "-m", "venv", home)
    python = home / "bin" / "python"
    wanted = [requirement("torch", torch), requirement("transformers", transformers), *other_requirements()]
    say(f"installing {' '.join(wanted)}")
    run(python, "-m", "pip", "install", "-q", "--no-compile", *wanted)
    say("building the library")
    # No kernel depends on torch: they are compiled once. One architecture: whether CUDA kernels build and load beside
    # this torch is asked here; `make kernels` builds them all.
    settings = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    settings["CMAKE_CUDA_ARCHITECTURES"] = os.environ.get("CMAKE_CUDA_ARCHITECTURES", "80-real")
    run(python, "setup.py", "-q", "build_ext", "--inplace", folder=source, env=settings)
    return python


def test_run(python: pathlib.Path, source: pathlib.Path) -> dict[str, object]:
    """The golden tensors made anew, then TESTS; counts, and the names of what did not pass."""
    start, failures = time.monotonic(), []
    golden = [python, "-m", "tests.video.golden.make_golden"]
    here: dict[str, object] = {"folder": source, "check": False, "env": {"PYTHONPATH": f"{source}:{source / 'python'}"}}
    if run(*golden, **here).returncode:
        failures.append("tests.video.golden.make_golden")
    report = WORK / "report.xml"
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for file, chosen in TESTS.items():
        report.unlink(missing_ok=True)
        paths = list((source / "tests").rglob(file))
        command = [python, "-m", "pytest", "-q", "-m", "not slow", f"--junitxml={report}", *paths]
        ended = run(*command, *(["-k", chosen] if chosen else []), **here)
        if not paths or not report.exists():
            failures.append(f"{file} did not run")
            continue
        suite = ElementTree.parse(report).getroot()[0]
        for name in counts:
            counts[name] += int(suite.attrib[name])
        bad = [
            case.attrib["name"] for case in suite if case.find("failure") is not None or case.find("error") is not None
        ]
        failures += [f"{file}::{name}" for name in bad] or (
            [f"{file} exit {ended.returncode}"] * bool(ended.returncode)
        )
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    row = {"passed": passed, "skipped": counts["skipped"], "failed": failures}
    return row | {"seconds": round(time.monotonic() - start)}


def all_versions(chosen: str | None) -> int:
    """Runs COMBINATIONS (of one torch, where chosen) and writes RESULT after each."""
    from sparrow.provenance import provenance

    rows = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    source, failed = WORK / "source", 0
    shutil.rmtree(source, ignore_errors=True)
    copy_of_the_tree(source)
    made = provenance("make test-versions") | {"threads": 1}  # as the tests have it
    for torch, releases in COMBINATIONS.items():
        if chosen not in (None, torch):
            continue
        python = environment_of(torch, releases[0], source)
        for number, transformers in enumerate(releases):
            asked = {"asked": {"torch": torch, "transformers": transformers}}
            if number:
                run(python, "-m", "pip", "install", "-qU", "--no-compile", requirement("transformers", transformers))
            facts = json.loads(run(python, "-c", FACTS, folder=source, stdout=subprocess.PIPE).stdout)
            say(f"testing {facts}")
            row = asked | facts | test_run(python, source)
            row["provenance"] = made | {name: facts[name] for name in ("python", "torch", "transformers")}
            say(f"{row['passed']} passed, {len(row['failed'])} failed: {row['failed']}")
            failed += len(row["failed"])
            rows = [other for other in rows if other["asked"] != row["asked"]] + [row]
            write_json(RESULT, {"provenance": [r["provenance"] for r in rows], "tests": TESTS, "runs": rows}, indent=1)
        shutil.rmtree(WORK / f"torch-{torch}")
    return 1 if failed else 0


def table() -> str:
    """The committed result in Markdown: tests passed by torch (rows) and transformers (columns)."""
    runs = json.loads(RESULT.read_text())["runs"]
    by_number = functools.partial(sorted, key=lambda text: [int(part) for part in text.split("+")[0].split(".")])
    releases = by_number({run["transformers"] for run in runs})
    lines = [f"| torch | transformers {' | '.join(releases)} |", "|---" * (len(releases) + 1) + "|"]
    for torch in by_number({run["torch"] for run in runs}):
        found = {run["transformers"]: run for run in runs if run["torch"] == torch}
        cells = (found.get(release) for release in releases)
        lines.append(f"| {torch} | {' | '.join(_cell(run) for run in cells)} |")
    return "\n".join(lines)


def _cell(run: dict | None) -> str:
    if run is None:
        return ""
    others = [f"{len(run['failed'])} failed"] * bool(run["failed"]) + [f"{run['skipped']} skipped"] * bool(
        run["skipped"]
    )
    return ", ".join([f"{run['passed']} passed", *others])


def drift() -> str:
    """What the newest transformers, with what it needs, does to a short lossless run in this environment."""
    pip, target = [sys.executable, "-m", "pip", "install", "-q", "--timeout", "10", "--retries", "1"], WORK / "drift"
    asked: dict[str, object] = {"check": False, "capture_output": True, "text": True}
    shutil.rmtree(target, ignore_errors=True)
    try:
        plan = run(*pip, "-U", "--dry-run", "--report", "-", "transformers", timeout=90, **asked)
        if plan.returncode:
            return f"not checked ({(plan.stderr.strip() or 'pip failed').splitlines()[-1]})"
        newer = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(plan.stdout)["install"]}
        if "transformers" not in newer:
            return "none (the newest transformers is the one that was tested)"
        wanted = [requirement(*item) for item in newer.items()]
        if run(*pip, "--no-deps", "--target", target, *wanted, timeout=90, **asked).returncode:
            return f"not checked (pip cannot install {' '.join(wanted)})"
        env = {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT), str(ROOT / "python")])}
        tests = [*(ROOT / "tests").rglob("test_lossless.py"), "-k", SHORT]
        ended = run(sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *tests, env=env, timeout=180, **asked)
    except subprocess.TimeoutExpired as error:
        return f"not checked (more than {error.timeout:.0f} s: {' '.join(map(str, error.cmd[1:4]))} ...)"
    if ended.returncode == 0:
        return f"none (under {' '.join(wanted)})"
    why = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return f"under {' '.join(wanted)}: {(why or ['the run ended early'])[-1]}"


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", choices=COMBINATIONS, help="only the combinations of this torch")
    parser.add_argument("--table", action="store_true", help="print README's table")
    parser.add_argument("--drift", action="store_true", help="the newest transformers over this environment")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return 0
    if arguments.drift:
        print(f"dependency drift: {drift()}")
        return 0
    return all_versions(arguments.torch)


if __name__ == "__main__":
    sys.exit(main())
