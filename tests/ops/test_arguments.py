"""What every operator refuses, in one line that names operator and argument: devices, memory, kinds, numbers."""

import re

import pytest
import torch

import sparrow_ext
from tests.ops.fuzz.calls import MAKERS, Call, Draw
from tests.ops.fuzz.mutations import tensors

FAR = [-1, 2**31, 2**58 - 129, 2**63 - 1, -(2**63)]
NUMBERS = [
    ("draft_attention", "window"),
    ("draft_attention", "n_anchor"),
    ("lm_head_topk", "k"),
    ("text_compact", "max_text"),
    ("topk_lse", "k"),
    ("tree_accept", "max_path"),
    ("tree_attention", "max_prefix_len"),
    ("tree_attention", "split_size"),
    ("tree_expand", "level"),
    ("tree_expand", "beam"),
    ("tree_rerank", "num_nodes"),
]
SIZES = {
    "draft_attention_workspace_size": ["B", "T", "H", "D", "max_len"],
    "skinny_linear_workspace_size": ["M", "K", "N"],
    "tree_attention_workspace_size": ["B", "N", "H", "D", "max_prefix_len", "split_size"],
}


def full_call(op: str) -> Call:
    """A valid call with every optional argument, nothing empty."""
    call = MAKERS[op](Draw(lambda low, high: (low + high + 1) // 2))
    given = call.arguments = dict(call.arguments)  # the check keeps its own
    if "error" in str(getattr(torch.ops.sparrow, op).default._schema):
        given["error"] = sparrow_ext.error_word("cpu")
        call.written += ("error",)
    if op == "skinny_linear":
        given["workspace"] = torch.zeros(1 << 20, dtype=torch.uint8)
    if op == "draft_attention":
        b, t, width = given["qkv"].shape
        kv_heads, d = given["k_cache"].shape[2:]
        given["out"] = torch.zeros(b, t, width // d - 2 * kv_heads, d, dtype=given["qkv"].dtype)
        given["workspace"] = torch.zeros(1 << 22, dtype=torch.uint8)
        given["num_rows"] = torch.tensor([t], dtype=torch.int32)
    return call


def out_call() -> Call:
    """tree_attention_out, as full_call gives the others."""
    given = full_call("tree_attention").arguments
    q = given["q"]
    given |= {"scale": 0.25, "max_prefix_len": given["k_cache"].shape[1]}
    given |= {"out": torch.zeros_like(q), "lse": torch.zeros(q.shape[:3])}
    given["workspace"] = torch.zeros(1 << 24, dtype=torch.uint8)
    return Call("tree_attention_out", given, lambda got: None, ("out", "lse", "workspace", "error"))


def new_call(op: str) -> Call:
    return out_call() if op == "tree_attention_out" else full_call(op)


OPS = [*MAKERS, "tree_attention_out"]
SLOTS = [(op, name) for op in OPS for name, *_ in tensors(new_call(op))]
WRITTEN = [(op, name) for op, name in SLOTS if name.split("[")[0] in new_call(op).written]


def refused(call: Call, message: str, kind: type[Exception] = RuntimeError) -> None:
    """The call raises, in one line without a path, and has changed nothing."""
    before = {n: t.clone() for n, get, _ in tensors(call) if not (t := get()).is_meta and t.untyped_storage().nbytes()}
    base = call.op.removesuffix("_out")
    with pytest.raises(kind, match=rf"^sparrow::{base}(_out)?: {message}") as caught:
        call.run()
    text = str(caught.value)
    assert "\n" not in text and not re.search(r"\.(h|cpp|cu|py)\b|/\w+/", text), text
    for name, get, _ in tensors(call):
        if name in before:
            same = get().contiguous().view(torch.uint8) == before[name].contiguous().view(torch.uint8)
            assert bool(same.all()), f"{name} has changed"


@pytest.mark.parametrize("op", OPS)
def test_the_calls_are_right(op):
    call = new_call(op)
    call.check(call.run())
    assert all(get().numel() > 0 for _, get, _ in tensors(call))


@pytest.mark.parametrize(("op", "name"), SLOTS)
def test_one_argument_on_meta(op, name):
    call = new_call(op)
    others = [n for n, *_ in tensors(call) if n != name]
    _, get, put = next(entry for entry in tensors(call) if entry[0] == name)
    put(get().to("meta"))
    if not others:
        assert call.run().is_meta  # all are: shapes only
        return
    refused(call, r"\S+ must be on the device of \S+ \((cpu|meta)\), got (cpu|meta)$")


def test_all_on_meta_is_the_fake_kernel():
    call = new_call("lm_head_topk")
    for _, get, put in tensors(call):
        put(get().to("meta"))
    assert all(t.is_meta for t in call.run())


@pytest.mark.parametrize(("op", "name"), WRITTEN)
def test_a_written_tensor_may_not_share_memory(op, name):
    for other in [n for n, *_ in tensors(new_call(op)) if n != name]:
        call = new_call(op)
        slots = {n: (get, put) for n, get, put in tensors(call)}
        mine, theirs = slots[name][0](), slots[other][0]()
        sizes = [t.numel() * t.element_size() for t in (theirs, mine)]
        buffer = torch.zeros(sum(sizes) + 64, dtype=torch.uint8)
        at = (sizes[0] - 1) // 16 * 16  # the last bytes of `other` are the first of `name`
        for t, start, (_, put) in ((theirs, 0, slots[other]), (mine, at, slots[name])):
            put(buffer[start : start + t.numel() * t.element_size()].view(t.dtype).view(t.shape))
        names = rf"({re.escape(name)}|{re.escape(other)})"
        refused(call, rf"{names} is written: it must not overlap {names} in memory$")


@pytest.mark.parametrize(("op", "name"), WRITTEN)
def test_a_written_tensor_may_not_hold_an_element_twice(op, name):
    call = new_call(op)
    _, get, put = next(entry for entry in tensors(call) if entry[0] == name)
    x = get()
    if x.numel() < 2:
        pytest.skip("one element")
    wide = next(d for d in range(x.dim()) if x.shape[d] > 1)
    put(x.narrow(wide, 0, 1).expand(x.shape))
    refused(call, rf"{re.escape(name)} is written: it must not hold an element twice, got shape ")
    if x.dim() > 1:  # rows that reach into each other
        call = new_call(op)
        _, get, put = next(entry for entry in tensors(call) if entry[0] == name)
        x = get().contiguous()
        strides = [max(1, s // 2) if d < x.dim() - 1 else 1 for d, s in enumerate(x.stride())]
        put(x.as_strided(x.shape, strides))
        refused(call, rf"{re.escape(name)} is written: it must not hold an element twice, got shape ")


@pytest.mark.parametrize(("op", "name"), SLOTS)
def test_freed_memory(op, name):
    call = new_call(op)
    _, get, put = next(entry for entry in tensors(call) if entry[0] == name)
    x = get().clone()
    put(x)
    x.untyped_storage().resize_(0)
    refused(call, rf"{re.escape(name)} must lie in its storage, got 0 bytes of storage for shape ")


EMPTY = {  # lists, and what is said of one that is empty
    "keys": "keys and values must have one tensor per layer",
    "values": "keys and values must have one tensor per layer",
    "weights": "weights must hold 1 to 3 tensors, got 0$",
    "biases": r"biases must hold one entry for each of the \d weights, got 0$",
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in new_call(op).arguments])
@pytest.mark.parametrize("what", [None, [], [1], "text", 2.5j, {}, 2**63])
def test_an_argument_of_the_wrong_kind(op, name, what):
    call = new_call(op)
    hint = getattr(sparrow_ext, op).__annotations__[name]
    if what is None and type(None) in getattr(hint, "__args__", ()):
        return
    call.arguments[name] = what
    if name in EMPTY and what == []:
        refused(call, EMPTY[name])
    elif hint in (float, float | None) and what == 2**63:
        call.run()
    else:
        got = {"[]": "a list of nothing", "[1]": "a list of int", "2.5j": "a complex", "{}": "a dict"}.get(repr(what))
        refused(call, rf"{name} must be (a|an) .*, got {got or repr(what)}$", TypeError)


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_numbers_out_of_range(op, name, value):
    if name == "split_size" and 0 <= value <= 2**60:
        return  # longer than any prefix: one piece
    call = new_call(op)
    call.arguments[name] = value
    refused(call, rf"{name} must lie in \[.*\], got {value}$")


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize(("function", "name"), [(f, n) for f, names in SIZES.items() for n in names])
def test_sizes_out_of_range(function, name, value):
    if name == "split_size" and 0 <= value <= 2**60:
        return
    given = dict.fromkeys(SIZES[function], 2) | {name: value}
    with pytest.raises(RuntimeError, match=rf"^sparrow::{function}: {name} must lie in \[0, \d+\], got {value}$"):
        getattr(sparrow_ext, function)(**given)


def test_sizes_whose_product_wraps():
    function, most = "tree_attention_workspace_size", 2**31 - 1
    small = getattr(sparrow_ext, function)(*[2] * len(SIZES[function]))
    assert 0 < small < 10**6
    with pytest.raises(RuntimeError, match=rf"^sparrow::{function}: .* less than 2\^60 bytes of memory, got more$"):
        getattr(sparrow_ext, function)(*[most] * 5, 1)


def test_draft_attention_workspace_size_in_python_equals_the_operators():
    for sizes in [(1, 2, 3, 4, 5), (1, 2, 3, 4, 32640), (3, 128, 32, 256, 2**31 - 1), (0, 1, 1, 1, 0)]:
        mine, theirs = (m.draft_attention_workspace_size(*sizes) for m in (sparrow_ext, torch.ops.sparrow))
        assert mine == theirs


def test_sizes_of_64_bits():
    wide = torch.zeros(1, 1).expand(2**31, 1)
    with pytest.raises(RuntimeError, match=r"^sparrow::argmax_rows: every dimension of logits must be below 2\^31"):
        sparrow_ext.argmax_rows(wide)


def test_nothing_hangs_on_rows_without_elements():
    assert sparrow_ext.tree_mask(torch.empty(2**31 - 1, 0, dtype=torch.int32))[0].shape == (2**31 - 1, 0, 0)


def test_memory_that_is_not_there():
    with pytest.raises(RuntimeError, match=r"^sparrow::text_compact: an output or scratch of \d+ bytes cannot be"):
        sparrow_ext.text_compact(
            torch.zeros(1, 1, dtype=torch.bool).expand(2**20, 1), torch.ones(2**20, dtype=torch.int32), 2**31 - 1
        )


def test_other_layouts_are_refused_by_name():
    for x, what in [
        (torch.eye(3).to_sparse(), "torch.sparse_coo"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8), "quantized"),
        (torch.nested.nested_tensor([torch.zeros(2)]), "nested"),
    ]:
        with pytest.raises(RuntimeError, match=rf"^sparrow::argmax_rows: logits must be a dense .*, got {what}$"):
            sparrow_ext.argmax_rows(x)


def test_the_operators_own_messages_have_no_path():
    """torch.ops.sparrow.<op>, without the wrapper."""
    with pytest.raises(RuntimeError) as caught:
        torch.ops.sparrow.tree_mask(torch.zeros(1, 2))
    assert str(caught.value) == "sparrow::tree_mask: parent must be int32, got float32"
    with pytest.raises(NotImplementedError) as caught:
        torch.ops.sparrow.tree_mask(torch.eye(3).to_sparse())
    where = [line for line in str(caught.value).splitlines() if line.startswith("CPU: registered at")]
    assert where and where[0].startswith("CPU: registered at csrc/bindings/tree_mask.cpp:")


def test_a_freed_tensor_beside_wrong_kinds_names_the_kind_first():
    with pytest.raises(TypeError, match=r"^sparrow::lm_head_topk: k must be an int of 64 bits, got None$"):
        sparrow_ext.lm_head_topk(torch.zeros(1, 2), torch.zeros(3, 2), None)


def test_python_says_what_is_missing():
    with pytest.raises(TypeError, match=r"tree_mask\(\) missing 1 required positional argument: 'parent'"):
        sparrow_ext.tree_mask()
