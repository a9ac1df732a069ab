"""Where a number says it comes from."""

import pathlib
import subprocess

import torch

from sparrow import provenance


def test_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert provenance.commit() == "no checkout"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "__init__.py").write_text("")
    subprocess.run([*git, "init", "-q"], check=True)
    assert provenance.commit() == "no checkout"  # an installed package inside someone's repository
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    clean = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "result.json").write_text("{}")  # files git does not know do not count
    assert provenance.commit() == clean and len(clean) == 40
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert provenance.commit() == f"{clean} with uncommitted changes"


def test_machine_and_versions(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    found = provenance.provenance("sparrow eval")
    assert found["command"] == "sparrow eval" and found["threads"] == 7
    assert str(torch.__version__).startswith(str(found["torch"])) and found["transformers"]
    info = pathlib.Path("/proc/cpuinfo")
    assert found["cpu"] and (
        not info.exists() or "model name" not in (text := info.read_text()) or found["cpu"] in text
    )
