"""What is relied on in vLLM is there, in the wheel that is installed; what is missing or not supported is named."""

import ast
import pathlib
import types

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.vllm.cases import DRAFTER, TARGET, asked

if not asked():
    pytest.skip("vLLM has an environment of its own: `make test-vllm`", allow_module_level=True)

import vllm
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from sparrow.drafters.network import SparrowDrafter
from sparrow.engines import vllm_contract, vllm_drafting
from sparrow.engines.vllm_drafting import Drafting, Options, _whole
from sparrow.miniature.shipped import REFERENCE, pair

OWN = rejection_sampler.expand_batch_to_tokens  # before anything is installed


def config(**changes):
    """A configuration as vLLM has it, as far as it is looked at; changes: "part.name" with two underscores."""
    made = types.SimpleNamespace(
        parallel_config=types.SimpleNamespace(
            pipeline_parallel_size=1, decode_context_parallel_size=1, enable_dbo=False
        ),
        scheduler_config=types.SimpleNamespace(async_scheduling=False),
        model_config=types.SimpleNamespace(enable_prompt_embeds=False, max_model_len=4096),
        lora_config=None, kv_transfer_config=None, additional_config={"sparrow": {"drafter": DRAFTER}},
    )  # fmt: skip
    for name, value in changes.items():
        *part, last = name.split("__")
        setattr(getattr(made, part[0]) if part else made, last, value)
    return made


def test_this_vllm_fits():
    assert not vllm_contract.faults() and not vllm_contract.faults_v2()
    assert vllm_contract.version() in vllm_contract.TESTED


def test_another_one_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(GPUModelRunner, vllm_contract.WRAPPED, lambda self, hidden_states: None)
    monkeypatch.setattr(vllm_contract, "SPEC", ("block_size", "colour"))
    with pytest.raises(RuntimeError) as caught:
        vllm_contract.check(vllm_contract.faults())
    (line,) = str(caught.value).splitlines()
    assert "propose_draft_token_ids takes ('self', 'hidden_states')" in line
    assert "FullAttentionSpec has no colour" in line and "tested: 0.32.0" in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"parallel_config__decode_context_parallel_size": 2}, "decode_context_parallel_size"),
        ({"lora_config": object()}, "enable_lora"),
        ({"kv_transfer_config": object()}, "kv_transfer_config"),
        ({"model_config__enable_prompt_embeds": True}, "enable_prompt_embeds"),
        ({"parallel_config__enable_dbo": True}, "enable_dbo"),
        ({"scheduler_config__async_scheduling": True}, "async_scheduling"),
    ],
)
def test_what_is_not_supported_is_named(changes, named):
    vllm_contract.refuse(config())
    with pytest.raises(ValueError, match=rf"not supported .*\({named}\)"):
        vllm_contract.refuse(config(**changes))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "additional_config must hold"),
        ({"sparrow": {"text_rows": 5}}, "additional_config must hold"),
        ({"sparrow": {"drafter": DRAFTER, "txt_rows": 5}}, "no keys but adaptive, drafter, least, text_rows"),
        ({"sparrow": {"drafter": DRAFTER, "least": 2}}, "least must lie in"),
        ({"sparrow": {"drafter": DRAFTER, "text_rows": -1}}, "text_rows must be an integer of at least 0"),
    ],
)
def test_options(given, message):
    assert Options.of(config()).text_rows == 2048
    assert Options.of(config(model_config__max_model_len=100)).text_rows == 100
    with pytest.raises(ValueError, match=message):
        Options.of(config(additional_config=given))


def test_quantised_tables_are_refused():
    layer = types.SimpleNamespace(weight=torch.zeros(4, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match="no quantised tables"):
        _whole(layer, 4)


def test_a_drafter_of_another_numbering_is_told_of_the_one_beside_it(monkeypatch):
    told, made, own = [], object.__new__(Drafting), transformers.AutoConfig.from_pretrained(TARGET)
    monkeypatch.setattr(vllm_drafting.logger, "warning", lambda text, *words: told.append(text % words))
    models = types.SimpleNamespace(hf_config=own, hf_text_config=own.text_config)
    made.config = types.SimpleNamespace(model_config=models)
    table = load_file(pathlib.Path(TARGET) / "model.safetensors")["model.embed_tokens.weight"]
    for folder in (pair()[1], REFERENCE):
        made.options, made.drafter = Options(str(folder)), SparrowDrafter.from_pretrained(folder)
        made._check_target(table, table)
    (line,) = told
    assert "trained under 'hf'" in line and f"{REFERENCE} was trained so" in line


def expanded(function) -> torch.Tensor:
    temperatures = torch.tensor([0.5, 1.0, 0.0])
    return function(temperatures, torch.tensor([2, 2, 5]), 5, replace_from=0, replace_to=1)


def test_temperatures_reach_every_drafted_position():
    assert expanded(vllm_contract.expand_batch_to_tokens).tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.xfail(strict=True, reason="the fault in docs/engines.md: once it is gone, so may our function be")
def test_vllms_own_function_for_the_cpu():
    for _ in range(5):  # uninitialised memory may be right by chance
        torch.full((5,), 7.0)
        assert expanded(OWN).tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]


def parameters(module: str, function: str, owner: str | None = None) -> set[str]:
    """Of a function in a file of the installed vLLM, read without importing it: the V2 runner wants a GPU."""
    tree = ast.parse((pathlib.Path(vllm.__file__).parent / module).read_text())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner).body if owner else tree.body
    found = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function)
    return {argument.arg for argument in found.args.args}


def test_the_v2_runner_offers_what_an_adapter_needs():
    made = parameters("v1/worker/gpu/spec_decode/__init__.py", "init_speculator")
    step = parameters("v1/worker/gpu/spec_decode/speculator.py", "propose", "BaseSpeculator")
    assert {"vllm_config", "device", "req_states"} <= made
    assert {
        "input_batch", "slot_mappings", "last_hidden_states", "num_sampled", "num_rejected", "last_sampled",
    } <= step  # fmt: skip
