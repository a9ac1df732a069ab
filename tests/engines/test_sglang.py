"""What an adapter for SGLang would rely on, in its wheel as it is: parsed, not imported, since it has no CPU build.

docs/engines.md says what the adapter needs. `make test-vllm` gets the wheel into build/sglang.
"""

import ast
import os
import pathlib
import zipfile

import pytest

WHEELS = sorted((pathlib.Path(__file__).parents[2] / "build" / "sglang").glob("sglang-0.5.23-*.whl"))
WANTED = os.environ.get("SPARROW_SGLANG") == "1"
pytestmark = pytest.mark.skipif(
    not WHEELS and not WANTED, reason="no wheel of SGLang in build/sglang: `make test-vllm`"
)
SPECULATIVE = "sglang/srt/speculative"


def module(name: str) -> ast.Module:
    with zipfile.ZipFile(WHEELS[0]) as wheel:
        return ast.parse(wheel.read(name))


def found(body: list[ast.stmt], kind: type, name: str):
    return next(node for node in body if isinstance(node, kind) and node.name == name)


def parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]


def test_a_plugin_registers_an_algorithm():
    """The entry point's group, and the decorator that takes the worker's class."""
    groups = {
        node.targets[0].id: node.value.value
        for node in module("sglang/srt/plugins/__init__.py").body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert groups["GENERAL_PLUGINS_GROUP"] == "sglang.srt.plugins"
    algorithm = found(module(f"{SPECULATIVE}/spec_info.py").body, ast.ClassDef, "SpeculativeAlgorithm")
    register = found(algorithm.body, ast.FunctionDef, "register")
    assert parameters(register) == ["cls", "name", "supports_overlap", "validate_server_args", "spec_class"]


def test_the_worker_runs_the_whole_step():
    """What the scheduler calls; it is handed the batch, and runs the target itself."""
    for name, owner in (("eagle_worker_v2", "EAGLEWorkerV2"), ("ngram_worker", "NGRAMWorker")):
        worker = found(module(f"{SPECULATIVE}/{name}.py").body, ast.ClassDef, owner)
        assert parameters(found(worker.body, ast.FunctionDef, "forward_batch_generation"))[:2] == ["self", "batch"]


def test_the_target_verifies_any_tree():
    """A tree is tokens, a mask and three index tensors; tree_topk -1 says that it has no fixed branching."""
    tree = found(module(f"{SPECULATIVE}/eagle_info.py").body, ast.ClassDef, "EagleVerifyInput")
    fields = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    assert {
        "draft_token", "custom_mask", "positions", "retrieve_index", "retrieve_next_token", "retrieve_next_sibling",
        "draft_token_num", "capture_hidden_mode", "prepared_mrope_positions",
    } <= fields  # fmt: skip
    irregular = found(module(f"{SPECULATIVE}/ngram_info.py").body, ast.ClassDef, "NgramVerifyInput")
    (answer,) = [n for n in ast.walk(found(irregular.body, ast.FunctionDef, "tree_topk")) if isinstance(n, ast.Return)]
    assert ast.literal_eval(answer.value) == -1


def test_the_targets_states_of_all_positions_can_be_had():
    modes = found(module("sglang/srt/model_executor/forward_batch_info.py").body, ast.ClassDef, "CaptureHiddenMode")
    assert {"NULL", "LAST", "FULL"} <= {n.targets[0].id for n in modes.body if isinstance(n, ast.Assign)}
