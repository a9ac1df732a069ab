"""Layers and rooms, by their imports; one name per operator in every layer."""

import ast
import pathlib
import re
import sys

import pytest
import torch

import sparrow_ext

ROOT = pathlib.Path(__file__).parents[2]
PARTS_OF_AN_OPERATOR = ("_out", "_workspace_size", "_layers", "_group")
NOT_OPERATORS = {"cpu_isa", "set_cpu_isa"}  # the library's own settings
MAX_LINES = {".py": 300, ".cu": 500, ".cuh": 500}
MAX_FUNCTION_LINES = 60


def files(folder: str, *suffixes: str) -> list[pathlib.Path]:
    return [p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in suffixes and "__pycache__" not in p.parts]


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- C++: ops <- cpu, kernels <- bindings; torch in the bindings only ---

HEADERS = {  # folder -> the folders whose headers it may include
    "csrc/ops": {"ops"},
    "csrc/cpu": {"ops", "cpu"},
    "csrc/kernels": {"ops", "kernels"},
    "csrc/bindings": {"ops", "kernels", "bindings"},
    "csrc/tests": {"ops", "cpu", "kernels", "tests"},
}


def includes(path: pathlib.Path) -> list[tuple[str, str]]:
    """("<" or a quote, header) of each #include."""
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("folder", HEADERS)
def test_cpp_layers(folder):
    faults = []
    for path in files(folder, ".h", ".cpp", ".cu", ".cuh"):
        for kind, header in includes(path):
            own = kind == '"' and header.split("/")[0] in HEADERS[folder] and (ROOT / "csrc" / header).exists()
            system = kind == "<" and not re.match(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h", header)
            stable = folder == "csrc/bindings" and re.match(
                r"torch/(csrc/stable|csrc/inductor/aoti_torch|headeronly)/", header
            )
            simulated = name(path) == "csrc/kernels/portable.cuh" and header == "cuda_host.hpp"  # tests/hostsim only
            if not (own or system or stable or simulated):
                faults.append(f"{name(path)} includes {header}")
    assert not faults, faults


# --- Python: sparrow_ext <- sparrow <- bench, tests ---


def imported(path: pathlib.Path) -> set[str]:
    """Every module the file imports, wherever it does; `from a import b` counts as a and as a.b."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import; the rules are checked on absolute ones"
            modules |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def roots(path: pathlib.Path) -> set[str]:
    return {module.split(".")[0] for module in imported(path)}


def test_sparrow_ext_needs_torch_only():
    faults = {
        name(p): roots(p) - {"torch", "sparrow_ext"} - sys.stdlib_module_names for p in files("sparrow_ext", ".py")
    }
    assert not any(faults.values()), faults


def test_nothing_imports_tests_or_bench():
    faults = [
        name(p) for f in ("sparrow_ext", "python", "tools") for p in files(f, ".py") if roots(p) & {"tests", "bench"}
    ]
    assert not faults


# A room may import from rooms on the floors before its own.
FLOORS = (
    {"tree", "files", "progress", "provenance"},
    {"sampling"},
    {"targets", "video"},
    {"drafters"},
    {"decoding", "engines"},
    {"training"},
    {"miniature"},
    {"smollm2"},
    {"evaluation"},
    {"cli"},
)
TRANSFORMERS = {"targets", "miniature", "smollm2", "cli"}  # who may know it
DOORS = {"__init__", "__main__"}  # the package's own: they may open any room


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "python" / "sparrow").parts[0].removesuffix(".py")


def rooms_used(path: pathlib.Path) -> set[str]:
    """The rooms a file imports from; `from sparrow.a import b` counts as a."""
    return {m.split(".")[1] for m in imported(path) if m.startswith("sparrow.")}


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_is_on_a_floor():
    rooms = {room(path) for path in files("python/sparrow", ".py")} - DOORS
    assert rooms <= set().union(*FLOORS), f"rooms without a floor: {sorted(rooms - set().union(*FLOORS))}"


def test_imports_go_one_way():
    faults = []
    for path in files("python/sparrow", ".py"):
        if (own := room(path)) in DOORS:
            continue
        allowed = set().union(*FLOORS[: floor(own)]) | {own}
        if own == "engines":
            allowed -= {"decoding"}
        faults += [f"{name(path)} imports from {other}" for other in sorted(rooms_used(path) - allowed)]
    assert not faults, faults


def test_the_loop_knows_no_rival():
    """A drafter enters by in_loop(); decoding/ names what every drafter is, and none but plain decoding."""
    allowed = {"sparrow.drafters.protocol", "sparrow.drafters.text"}
    named = {m for path in files("python/sparrow/decoding", ".py") for m in imported(path)}
    modules = {m for m in named if m.startswith("sparrow.drafters.") and m.count(".") == 2}
    assert modules == allowed
    assert {m for m in named if m.startswith("sparrow.drafters.text.")} == {"sparrow.drafters.text.NoDrafter"}


def test_transformers_stays_in_its_rooms():
    faults = [
        name(path)
        for path in files("python/sparrow", ".py")
        if "transformers" in roots(path) and room(path) not in TRANSFORMERS
    ]
    assert not faults, faults


VLLM = ("vllm_cache", "vllm_contract", "vllm_drafting", "vllm_plugin", "vllm_v2", "vllm_worker")


def test_vllm_stays_in_engines():
    users = {name(p) for p in files("python/sparrow", ".py") if "vllm" in roots(p)}
    assert users == {f"python/sparrow/engines/{n}.py" for n in VLLM}


# --- operators ---


def operators() -> list[str]:
    names = {
        s.name.removeprefix("sparrow::") for s in torch._C._jit_get_all_schemas() if s.name.startswith("sparrow::")
    }
    return sorted(n for n in names - NOT_OPERATORS if not n.endswith(PARTS_OF_AN_OPERATOR))


def test_operators_are_found():
    assert {"tree_mask", "tree_attention", "sample_rows"} <= set(operators())


@pytest.mark.parametrize("op", operators())
def test_operator_in_every_layer(op):
    layers = [
        f"csrc/ops/{op}.h",
        f"csrc/cpu/{op}.cpp",
        f"csrc/bindings/{op}.cpp",
        f"sparrow_ext/ops/{op}.py",
        f"tests/ops/test_{op}.py",
        f"bench/bench_{op}.py",
    ]
    missing = [path for path in layers if not (ROOT / path).exists()]
    assert not missing
    functions = {
        n.name: n
        for n in ast.parse((ROOT / f"sparrow_ext/ops/{op}.py").read_text()).body
        if isinstance(n, ast.FunctionDef)
    }
    assert {op, "_fake", "reference", "eager"} <= set(functions)
    documented = ast.get_docstring(functions[op])
    assert documented and "Args:" in documented and "Raises:" in documented
    first = ast.unparse(functions[op].body[1])  # after the docstring
    assert first.startswith(f"require_backend('{op}', "), f"{op}'s first statement is {first}"
    assert getattr(sparrow_ext, op).__name__ == op and op in sparrow_ext.__all__


# --- sizes ---

SOURCES = ("csrc", "sparrow_ext", "python", "bench", "tests", "tools")


def test_size_goals_are_reported():
    """Goals, not limits: `make check` prints what is over them."""
    for folder in SOURCES:
        for path in files(folder, *MAX_LINES):
            lines = path.read_text().splitlines()
            if len(lines) > MAX_LINES[path.suffix]:
                print(f"over {MAX_LINES[path.suffix]} lines: {name(path)} ({len(lines)})")
            if path.suffix == ".py":
                for node in ast.walk(ast.parse("\n".join(lines))):
                    if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                        print(f"over {MAX_FUNCTION_LINES} lines: {node.name} in {name(path)}")
