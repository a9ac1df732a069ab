"""The one writer: nothing else writes; what was there outlives a full disk, a kill, an interrupt and a bad value."""

import ast
import errno
import io
import json
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparrow import files
from sparrow.miniature.world import write_video

ROOT = pathlib.Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")

# --- nobody else writes ---

METHODS = {
    "write_text", "write_bytes", "savefig", "save_pretrained", "tofile", "rename", "unlink", "rmdir", "touch",
    "truncate", "symlink_to", "hardlink_to", "replace_with",
}  # fmt: skip
FUNCTIONS = {"save_file", "savez", "savez_compressed", "savetxt", "rmtree", "mkdtemp", "NamedTemporaryFile", "imsave"}
OF_MODULES = {
    "os": {"open", "replace", "remove", "fdopen"}, "shutil": {"move", "copy", "copy2", "copyfile", "copytree"},
    "torch": {"save"}, "np": {"save"}, "numpy": {"save"}, "json": {"dump"}, "pickle": {"dump"}, "yaml": {"dump_all"},
}  # fmt: skip
ALLOWED = {  # file -> what it may call, for a reason
    "python/sparrow/training/trainer.py": {"save_pretrained"},  # the drafter's own, which uses the writer
    "python/sparrow/cli/import_drafter.py": {"save_pretrained"},  # as well
    "python/sparrow/cli/places.py": {"save_pretrained"},  # as well
    "bench/gpu_runner.py": {"open"},  # a log to which processes append, some of which are killed
    "bench/gpu_worker.py": {"fdopen"},  # the pipe to the process that writes results
    "python/sparrow/cli/main.py": {"open"},  # /dev/null, in place of a pipe that nobody reads any more
    "tools/versions.py": {"copy2", "rmtree", "unlink"},  # environments under build/; its result goes through the writer
}


def names_to_write(tree: ast.AST) -> dict[ast.AST, set[str]]:
    """node -> the paths that an enclosing `with replacing(...) as name` lends."""
    lent: dict[ast.AST, set[str]] = {}

    def walk(node: ast.AST, names: set[str]) -> None:
        if isinstance(node, ast.With):
            for item in node.items:
                call, name = item.context_expr, item.optional_vars
                if isinstance(call, ast.Call) and isinstance(name, ast.Name) and ast.unparse(call.func) == "replacing":
                    names = names | {name.id}
        lent[node] = names
        for child in ast.iter_child_nodes(node):
            walk(child, names)

    walk(tree, set())
    return lent


def opens_to_write(call: ast.Call) -> bool:
    values = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    texts = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    unknown = [k for k in call.keywords if k.arg == "mode" and not isinstance(k.value, ast.Constant)]
    return bool(unknown) or any(re.fullmatch(r"[rwaxbt+]{1,4}", t) and set(t) & set("wax+") for t in texts)


def strays(source: str) -> list[str]:
    """The calls that write, remove or rename files past the writer."""
    tree, found = ast.parse(source), []
    lent = names_to_write(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", "")
        module = ast.unparse(call.func.value) if method else ""
        bad = (
            (method and name in METHODS)
            or name in FUNCTIONS
            or name in OF_MODULES.get(module, ())
            or (name == "open" and opens_to_write(call))
        )
        used = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
        if bad and not used & lent[call]:
            found.append(name)
    return found


@pytest.mark.parametrize("folder", ["python/sparrow", "sparrow_ext", "bench", "tools"])
def test_nobody_else_writes(folder):
    faults = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name != "python/sparrow/files.py":
            faults[name] = sorted(set(strays(path.read_text())) - ALLOWED.get(name, set()))
    assert len(faults) > 1 and not any(faults.values()), {k: v for k, v in faults.items() if v}


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')", "open(p, mode='ab')", "p.open('a')", "p.open(mode=m)", "p.open('r+b')", "av.open(str(p), 'w')",
        "p.write_text(t)", "(p / 'a').write_bytes(t)", "figure.savefig(p)", "save_file(t, p)", "st.save_file(t, p)",
        "torch.save(t, p)", "np.save(p, t)", "json.dump(t, f)", "model.save_pretrained(p)", "os.replace(p, q)",
        "p.unlink()", "os.open(p, flags)", "shutil.rmtree(p)",
        "with replacing(p) as new: other.write_text(t)",
    ],
)  # fmt: skip
def test_a_stray_writer_is_seen(line):
    assert strays(line)


def test_the_writer_and_readers_are_no_strays():
    source = """
with replacing(p) as new:
    figure.savefig(new)
    with av.open(str(new), "w") as c:
        model.save_pretrained(new / "a")
write_text(p, t); open(p); open(p, "rb"); p.open(); p.read_text(); text.replace("a", "w"); av.open(p, options="w")
"""
    assert strays(source) == []


# --- what was there outlives everything ---

FRAMES = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)


def _figure(path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    axes.imshow(FRAMES[0])
    files.write_figure(path, figure, dpi=130)
    plt.close(figure)


KINDS: dict[str, Callable[[pathlib.Path], object]] = {
    "a.txt": lambda path: files.write_text(path, "ä" * 30_000),
    "a.json": lambda path: files.write_json(path, list(range(10_000))),
    "a.safetensors": lambda path: files.write_tensors(path, {"x": torch.arange(20_000.0)}),
    "a.pt": lambda path: files.write_checkpoint(path, {"x": torch.arange(100_000.0)}),
    "a.png": _figure,
    "a.mp4": lambda path: write_video(path, FRAMES, 4.0),
}
SMALL = 9000  # bytes: less than each of them


def in_child(work: Callable[[], object], limit: int | None = None) -> tuple[str, str]:
    """(type, message) of what `work` raises in a process of its own; with a limit, no file there may grow beyond it."""
    ours, theirs = FORK.Pipe()

    def run() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            work()
        except BaseException as error:
            theirs.send((type(error).__name__, str(error)))
        else:
            theirs.send(("", ""))

    child = FORK.Process(target=run)
    child.start()
    answer = ours.recv() if ours.poll(60) else ("nothing", "no answer within a minute")
    child.join()
    return answer


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk(tmp_path, name):
    """The older file is as it was, the message names it, and nothing is left over."""
    path = tmp_path / name
    path.write_bytes(b"precious")
    kind, message = in_child(lambda: KINDS[name](path), limit=SMALL)
    assert kind == "OSError" and str(path) in message and "too large" in message.lower()
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == [name]
    KINDS[name](path)
    assert path.stat().st_size > SMALL and os.listdir(tmp_path) == [name]


def test_no_space_left_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.json").write_text("precious")
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda p: files.write_json(p, 1), lambda p: files.append_lines(p, ["1"])):
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a.json'") as error:
            write(tmp_path / "a.json")
        assert error.value.errno == errno.ENOSPC and (tmp_path / "a.json").read_bytes() in (b"precious", b"")
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match=rf"'{tmp_path}/file'"):
        files.write_json(tmp_path / "file" / "a.json", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=rf"'{tmp_path}/folder'"):
        files.write_json(tmp_path / "folder", 1)
    with pytest.raises(FileNotFoundError, match="'another'"), files.replacing(tmp_path / "a"):
        pathlib.Path("another").read_text()  # not ours: keeps its own name
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a", float("nan"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_all_as_it_was(tmp_path, error):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(error), files.replacing(tmp_path / "a") as new:
        new.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "precious" and os.listdir(tmp_path) == ["a"]


def test_what_stopped_a_checkpoint_is_what_is_raised(tmp_path, monkeypatch):
    """torch closes its archive on the way out, and answers an interrupted one with an error of its own."""

    class Stops(io.BufferedWriter):
        def write(self, data):
            raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "open", lambda path, mode: Stops(io.FileIO(path, mode)))
    with pytest.raises(KeyboardInterrupt):
        files.write_checkpoint(tmp_path / "a.pt", {"x": torch.zeros(100_000)})
    assert os.listdir(tmp_path) == []


def test_killed_while_writing(tmp_path):
    """The older file is as it was; what was half written goes when the lock is taken, not before."""

    def dies() -> None:
        with files.replacing(tmp_path / "a") as new:
            new.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "a").write_text("precious")
    child = FORK.Process(target=dies)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "precious" and len(os.listdir(tmp_path)) == 2
    files.write_text(tmp_path / "b", "")
    assert len(os.listdir(tmp_path)) == 3
    with files.lock(tmp_path / "b"):  # another file's
        assert len(os.listdir(tmp_path)) == 4
    with files.lock(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".b.lock", ".lock", "a", "b"]


def test_contents(tmp_path):
    for name, write in KINDS.items():
        write(tmp_path / "new" / name)
    assert (tmp_path / "new/a.txt").read_text(encoding="utf-8") == "ä" * 30_000
    assert json.loads((tmp_path / "new/a.json").read_text()) == list(range(10_000))
    assert torch.equal(load_file(tmp_path / "new/a.safetensors")["x"], torch.arange(20_000.0))
    assert torch.equal(torch.load(tmp_path / "new/a.pt", weights_only=True)["x"], torch.arange(100_000.0))
    assert (tmp_path / "new/a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new/a.mp4").read_bytes()[4:8] == b"ftyp"


def test_links_modes_and_pipes(tmp_path):
    """What the name leads to is written, its mode is kept, and no pipe is replaced by a file.

    A device would be the same branch; a real one is left alone, since code that is wrong would replace it.
    """
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("old")
    (tmp_path / "real/a").chmod(0o640)
    (tmp_path / "link").symlink_to("real/a")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real/a").stat().st_mode) == 0o640
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)
    with (tmp_path / "out").open("w") as out:
        files.write_text(f"/proc/self/fd/{out.fileno()}", "straight")
        assert os.fstat(out.fileno()).st_ino == (tmp_path / "out").stat().st_ino
    assert (tmp_path / "out").read_text() == "straight"


def test_folders(tmp_path):
    """A new one comes whole; one that is there keeps its other files, and loses none when the writing fails."""

    def write(text: str, fail: bool = False) -> None:
        with files.replacing(tmp_path / "folder") as new:
            files.write_text(new / "a", text)
            assert not (tmp_path / "folder/sub").exists() or text == "second"
            if fail:
                raise InterruptedError
            files.write_text(new / "sub" / "b", text)

    with pytest.raises(InterruptedError):
        write("first", fail=True)
    assert os.listdir(tmp_path) == []
    write("first")
    files.write_text(tmp_path / "folder/own", "mine")
    with pytest.raises(InterruptedError):
        write("second", fail=True)
    assert (tmp_path / "folder/a").read_text() == "first"
    write("second")
    texts = {p.name: p.read_text() for p in (tmp_path / "folder").rglob("*") if p.is_file()}
    assert texts == {"a": "second", "b": "second", "own": "mine"} and os.listdir(tmp_path) == ["folder"]
    kind, message = in_child(lambda: files.write_text(tmp_path / "folder/a", "x" * 5000), limit=100)
    assert kind == "OSError" and str(tmp_path / "folder/a") in message


def test_a_file_inside_a_folder_is_named_where_it_will_be(tmp_path):
    def write() -> None:
        with files.replacing(tmp_path / "folder") as new:
            files.write_text(new / "a", "x" * 5000)

    kind, message = in_child(write, limit=100)
    assert kind == "OSError" and message.endswith(f"'{tmp_path}/folder/a'") and os.listdir(tmp_path) == []


# --- logs ---


def test_a_log_grows_by_whole_lines(tmp_path):
    log = tmp_path / "new" / "log.jsonl"
    files.append_lines(log, ['{"a": 1}', '{"a": 2}'])
    with log.open("a") as file:
        file.write('{"a": 3')  # killed here
    assert list(files.read_json_lines(log)) == [(1, {"a": 1}), (2, {"a": 2})]
    kind, message = in_child(lambda: files.append_lines(log, ["1" * 50] * 4), limit=100)
    assert kind == "OSError" and str(log) in message
    assert list(files.read_json_lines(log)) == [(1, {"a": 1}), (2, {"a": 2})]
    with log.open("a") as file:
        file.write('{"a": 3')
    files.append_lines(log, ["3"])
    assert log.read_text() == '{"a": 1}\n{"a": 2}\n3\n'
    files.append_lines(log, [])
    assert log.read_text() == '{"a": 1}\n{"a": 2}\n3\n'


@pytest.mark.parametrize("line", [b"\x00\x00\x00", b"{", b"", b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(b"1\n" + line + b"\n3\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/log.jsonl, line 2 is damaged: "):
        list(files.read_json_lines(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("text", [b"", b'{"a": ', b"\x00" * 20, b"\xff\xfe\xff", b"[1]", b"3"])
def test_damaged_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.json is damaged: "):
        files.read_json(tmp_path / "a.json")


# --- locks ---


@pytest.fixture
def holder(tmp_path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process that holds tmp_path/run."""
    (tmp_path / "run").mkdir()
    ready = FORK.Event()

    def hold() -> None:
        with files.lock(tmp_path / "run"):
            ready.set()
            time.sleep(120)

    child = FORK.Process(target=hold)
    child.start()
    assert ready.wait(60)
    yield child
    child.kill()
    child.join()


def test_a_second_process_is_told_who_holds_it(tmp_path, holder):
    for _ in range(2):  # the first refusal changes nothing
        with pytest.raises(BlockingIOError, match=rf"^{tmp_path}/run is in use by process {holder.pid} on .+: wait"):
            files.lock(tmp_path / "run")
    with files.lock(tmp_path / "other"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with files.lock(tmp_path / "run"):
        assert f"process {os.getpid()} on" in (tmp_path / "run/.lock").read_text()


def test_a_process_may_ask_twice_and_the_last_one_lets_go(tmp_path):
    taken = lambda: in_child(lambda: files.lock(tmp_path))[0] == "BlockingIOError"  # noqa: E731
    first = files.lock(tmp_path)
    with files.lock(tmp_path / "sub" / ".."):
        assert taken()
    assert taken()
    del first
    assert not taken()
    with files.lock(tmp_path):
        assert taken()
    assert not taken()


def test_a_moved_folder_takes_its_lock_file_along(tmp_path):
    (tmp_path / "a").mkdir()
    held = files.lock(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert in_child(lambda: files.lock(tmp_path / "b"))[0] == "BlockingIOError"
    del held
    (tmp_path / "a").mkdir()
    with files.lock(tmp_path / "a"), files.lock(tmp_path / "b"):
        pass
