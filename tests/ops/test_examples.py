"""The example in each operator's docstring runs and gives what it says."""

import doctest
import inspect

import pytest
import torch

import sparrow_ext

OPERATORS = [name for name in sparrow_ext.__all__ if hasattr(torch.ops.sparrow, name) and "workspace" not in name]


@pytest.mark.parametrize("name", [n for n in OPERATORS if n not in ("cpu_isa", "set_cpu_isa")])
def test_example(name):
    function = inspect.unwrap(getattr(sparrow_ext, name))
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=function.__globals__.copy())
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example, out=said.append).failed == 0, "".join(said)
