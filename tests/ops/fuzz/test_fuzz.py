"""Operators under random calls: right ones against the float64 reference, broken ones in a process of their own.

`make test` runs a fixed, small number of examples, `make fuzz` SPARROW_FUZZ examples of each, at random.
"""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops.checks import available_isas, cpu_isa
from tests.ops.fuzz.calls import MAKERS, Draw
from tests.ops.fuzz.mutations import MUST_BE_REFUSED, MUTATIONS, NotHere
from tests.ops.fuzz.worker import Worker

LONG = int(os.environ.get("SPARROW_FUZZ", "0"))


def examples(few: int):
    """`few` examples, the same every time; in a long run SPARROW_FUZZ of them, others every time."""
    return settings(
        max_examples=LONG or few,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def drawn(data: st.DataObject) -> Draw:
    return Draw(lambda low, high: data.draw(st.integers(low, high)))


def test_every_operator_is_fuzzed():
    import sparrow_ext

    schemas = {name for name in sparrow_ext.__all__ if hasattr(sparrow_ext.ops, name)}
    assert schemas | {"kv_commit_layers", "skinny_linear_group"} <= set(MAKERS)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("op", MAKERS)
def test_valid_calls_equal_the_reference(op, isa):
    @examples(12)
    @given(st.data())
    def run(data):
        call = MAKERS[op](drawn(data))
        with cpu_isa(isa):
            got = call.run()
        call.check(got)

    run()


@pytest.fixture(scope="module")
def worker():
    process = Worker()
    yield process
    process.close()


def assert_clean(op: str, answer: dict[str, str]) -> None:
    """The message names the operator and the argument, in one line, without a path or a word of C++."""
    message = answer["message"]
    if "can't allocate memory" in message:  # torch's own words, of a call that is right and too large for the worker
        return
    assert answer["type"] in ("RuntimeError", "TypeError", "ValueError"), answer
    base = {"kv_commit_layers": "kv_commit_layers"}.get(op, op)
    assert re.match(rf"sparrow::{base}(_workspace_size)?: ", message), message
    assert "\n" not in message and len(message) < 400, message
    assert not re.search(r"\.(h|cpp|cu|cuh|py)\b|/\w+/|::check|0x[0-9a-f]{6}", message), message


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("op", MAKERS)
def test_broken_calls_are_refused(op, mutation, worker):
    @examples(5)
    @given(st.data())
    def run(data):
        draw = drawn(data)
        try:
            MUTATIONS[mutation](MAKERS[op](draw), draw)
        except NotHere:
            return
        answer = worker.run(op, mutation, draw.taken)
        assert answer["came"] in ("result", "refused"), answer
        if mutation in MUST_BE_REFUSED:
            assert answer["came"] == "refused", answer
        if answer["came"] == "refused":
            assert_clean(op, answer)
            if mutation in MUST_BE_REFUSED:
                assert answer["argument"].split("[")[0] in answer["message"], answer

    run()
