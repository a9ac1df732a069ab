"""Registers, shared memory and spills of every CUDA kernel, per architecture, as docs/kernel_resources.md.

    python tools/kernel_resources.py [--check] [--build FOLDER] [SOURCE ...]     (needs nvcc, no GPU)

Fails on a spill that EXPLAINED does not know. --check writes nothing and fails where the document is out of date.
--build: reads what tools/nvcc_logged.sh kept of a build in that folder, and compiles nothing.
SOURCE: names in csrc/kernels, as tree_mask.cu: compiles these alone; the other rows stay as the document has them.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from sparrow.files import write_text

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "kernel_resources.md"
ARCHITECTURES = ["80", "89", "90a", "100", "120"]
FLAGS = ["-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-Icsrc"]

# (kernel's name without template arguments, architecture) -> why it may spill
EXPLAINED: dict[tuple[str, str], str] = {}


class Kernel(NamedTuple):
    """What ptxas says of one kernel on one architecture; sizes in bytes."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


def parse(said: str) -> list[Kernel]:
    """The kernels in the output of `ptxas -v`."""
    kernels = []
    for part in re.split(r"Compiling entry function ", said)[1:]:
        name = re.match(r"'(\w+)' for 'sm_(\w+)'", part)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers([^\n]*)", part)
        if not (name and stack and used):
            raise ValueError(f"cannot read ptxas's words: {part[:500]}")
        shared = re.search(r"(\d+) bytes smem", used.group(2))
        sizes = [int(n) for n in stack.groups()]
        registers, static = int(used.group(1)), int(shared.group(1)) if shared else 0
        kernels.append(Kernel(name.group(1), name.group(2), registers, static, *sizes))
    names = demangled([k.name for k in kernels])
    return [k._replace(name=name) for k, name in zip(kernels, names, strict=True)]


def demangled(names: list[str]) -> list[str]:
    """Readable names: no namespace, no parameter list."""
    said = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for name in said.splitlines():
        plain = re.sub(r"\(anonymous namespace\)::|sparrow::|^void ", "", name)
        plain = re.sub(r"\((?:int|bool|unsigned int|[A-Z]\w*)\)(?=-?\d)", "", plain)  # (int)4 -> 4
        depth, end = 0, len(plain)
        for i, c in enumerate(plain):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                end = i
                break
        short.append(plain[:end])
    return short


def compile_one(source: pathlib.Path, arch: str) -> list[Kernel]:
    nvcc = os.environ.get("CUDACXX", "nvcc")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, f"-arch=sm_{arch}", "-c", str(source), "-o", f"{folder}/x.o"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return parse(done.stdout + done.stderr)


def built(folder: pathlib.Path, source: pathlib.Path) -> list[Kernel]:
    """The kernels of one source in a build. Raises SystemExit where it is not there, or lacks an architecture."""
    logs = list(folder.glob(f"**/{source.name}.o.ptxas"))
    kernels = parse(logs[0].read_text()) if logs else []
    if missing := set(ARCHITECTURES) - {k.arch for k in kernels}:
        raise SystemExit(f"kernel_resources: {folder} has nothing of {source.name} for sm_{min(missing)}: make kernels")
    return kernels


def unexplained(kernels: list[Kernel]) -> list[str]:
    return [
        f"{k.name} on sm_{k.arch} spills {k.spill_stores} + {k.spill_loads} bytes"
        for k in kernels
        if k.spills and (k.name.split("<")[0], k.arch) not in EXPLAINED
    ]


def cell(k: Kernel) -> str:
    return f"{k.registers} / {k.shared}" + (f", spills {k.spill_stores} + {k.spill_loads}" if k.spills else "")


def rows_of_others(document: str, sources: set[str]) -> dict[str, list[str]]:
    """The document's rows of sources that are not among these."""
    rows: dict[str, list[str]] = {}
    for line in document.splitlines():
        found = re.match(r"\| (\w+\.cu) \|", line)
        if found and found.group(1) not in sources:
            rows.setdefault(found.group(1), []).append(line)
    return rows


def markdown(table: dict[str, list[Kernel]], arches: list[str], others: dict[str, list[str]] | None = None) -> str:
    lines = [
        "# Registers, shared memory and spills of the CUDA kernels",
        "",
        "Written by `tools/kernel_resources.py` from what ptxas says when it compiles them; nothing here was run.",
        "Per architecture: registers per thread / bytes of static shared memory per block (a kernel's dynamic shared",
        "memory is chosen at the launch and not in here), and bytes spilled (stores + loads) where there are any.",
        "",
        "| Source | Kernel | " + " | ".join(f"sm_{a}" for a in arches) + " |",
        "|---|---|" + "---|" * len(arches),
    ]
    for source in sorted({*table, *(others or {})}):
        if source not in table:
            lines += (others or {})[source]
            continue
        by_name: dict[str, dict[str, Kernel]] = {}
        for k in table[source]:
            by_name.setdefault(k.name, {})[k.arch] = k
        for name, per_arch in sorted(by_name.items()):
            cells = []
            for arch in arches:
                cells.append(cell(per_arch[arch]) if arch in per_arch else "-")
            lines.append(f"| {source} | `{name}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"- `{name}` on sm_{arch} may spill: {why}" for (name, arch), why in sorted(EXPLAINED.items()))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="compare with the document instead of writing it")
    options.add_argument("--build", type=pathlib.Path, metavar="FOLDER")
    options.add_argument("-j", "--jobs", type=int, default=min(4, os.cpu_count() or 1))
    options.add_argument("sources", nargs="*", metavar="SOURCE")
    chosen = options.parse_args()
    sources = sorted((ROOT / "csrc" / "kernels").glob("*.cu"))
    if unknown := set(chosen.sources) - {source.name for source in sources}:
        options.error(f"no such source in csrc/kernels: {', '.join(sorted(unknown))}")
    sources = [source for source in sources if not chosen.sources or source.name in chosen.sources]
    table: dict[str, list[Kernel]] = {}
    if chosen.build:
        table = {source.name: built(chosen.build, source) for source in sources}
    else:
        jobs = [(source, arch) for source in sources for arch in ARCHITECTURES]
        with concurrent.futures.ThreadPoolExecutor(chosen.jobs) as pool:
            results = list(pool.map(lambda job: compile_one(*job), jobs))
        for (source, _), kernels in zip(jobs, results, strict=True):
            table.setdefault(source.name, []).extend(kernels)
    faults = unexplained([k for kernels in table.values() for k in kernels])
    others = rows_of_others(DOCUMENT.read_text(), set(table)) if chosen.sources else {}
    text = markdown(table, ARCHITECTURES, others)
    if chosen.check:
        if not DOCUMENT.exists() or DOCUMENT.read_text() != text:
            faults.append(f"{DOCUMENT.relative_to(ROOT)} is out of date: python tools/kernel_resources.py")
    else:
        write_text(DOCUMENT, text)
    for fault in faults:
        print(f"kernel_resources: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
