"""A drafter's config.json: every field's type and range is checked when it is read."""

import json
from dataclasses import fields

import pytest

import sparrow
from sparrow.drafters.config import RANGES, DrafterConfig

GOOD = {
    "target": {"family": "llava_onevision"},
    "hidden_size": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "hidden_layer": 2,
}


def refusal(**change) -> str:
    with pytest.raises(ValueError) as caught:
        DrafterConfig.from_json(json.dumps(GOOD | change))
    return str(caught.value)


def test_the_good_one():
    config = DrafterConfig.from_json(json.dumps(GOOD | {"fused_layers": [0, 1], "rope_theta": 10000}))
    assert config.fused_layers == (0, 1) and config.state_layers == (2, 0, 1)
    most = {name: high for name, (_, high) in RANGES.items() if name not in ("fused_layers", "num_kv_heads")}
    DrafterConfig.from_json(json.dumps(GOOD | most | {"num_heads": 4096, "num_kv_heads": 4096}))


@pytest.mark.parametrize("name", [f.name for f in fields(DrafterConfig)])
@pytest.mark.parametrize("value", [None, "text", [], [1.5], {"a": {}}, 2.5, True, -1, 2**63, 10**400])
def test_another_type(name, value):
    kind = {f.name: f.type for f in fields(DrafterConfig)}[name]
    right = {int: int, float: (int, float), str: str, bool: bool}.get(kind, dict if kind != tuple[int, ...] else list)
    if isinstance(value, right) and not (isinstance(value, bool) and kind is not bool):
        return  # the right type: its range is the next test's
    words = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false"}
    words |= {tuple[int, ...]: "a list of integers"}
    assert f"{name} must be {words.get(kind, 'an object')}, got " in refusal(**{name: value})


@pytest.mark.parametrize("name", RANGES)
def test_out_of_range(name):
    low, high = RANGES[name]
    for value in (low - 1, high + 1, 2**63 - 1, 2**63, -(2**63), 10**30):
        given = [value] if name == "fused_layers" else value
        rule = f"be {low}" if low == high else f"lie in [{low}, {high}]"
        assert refusal(**{name: given}) == f"{name} must {rule}, got {value}"


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number(name, value):
    assert refusal(**{name: value}).startswith(f"{name} must be a finite number, got ")


def test_numbers_and_nesting_beyond_all_bounds():
    assert refusal(rope_theta=10**400) == "rope_theta must lie in [0.001, 1000000000000.0], got 1" + "0" * 39
    with pytest.raises(ValueError, match="nested too deeply"):
        DrafterConfig.from_json("[" * 200_000)


@pytest.mark.parametrize("name", ["output_norm", "positions", "visual"])
def test_choices(name):
    assert f"{name} must be one of " in refusal(**{name: "other"})


@pytest.mark.parametrize(
    "more", [{"layer": "eagle3"}, {"positions": "sequence"}, {"positions": "sequence", "visual": "rows"}]
)
def test_further_layers_read_text_rows_alone(more):
    assert "num_layers=2 needs layer=eagle, visual=none and positions=text or target" in refusal(num_layers=2, **more)


@pytest.mark.parametrize("tree", ["", "1-2", "a-b-c", "0-1-1", "200-4-8", "9" * 5000 + "-1-1"])
def test_trees(tree):
    assert "tree" in refusal(tree=tree).lower()


def test_sizes_the_weights_do_not_have_take_no_memory(tiny, tmp_path):
    """A config may ask for 2^20 x 2^21 weights, 8 TB; the file says how many there are."""
    target = sparrow.Target(tiny("llava_onevision"))
    sparrow.SparrowDrafter.from_target(target).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 2**20, "intermediate_size": 2**22}))
    with pytest.raises(ValueError, match=r"do not fit its config: size mismatch for fc\.weight"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path)


def test_what_is_read_is_on_the_cpu(tiny, tmp_path):
    target = sparrow.Target(tiny("llava_onevision"))
    mine = sparrow.SparrowDrafter.from_target(target, hidden_norm=True)
    mine.save_pretrained(tmp_path)
    again = sparrow.SparrowDrafter.from_pretrained(tmp_path)
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert (again.rope_frequency == mine.rope_frequency.cpu()).all()
