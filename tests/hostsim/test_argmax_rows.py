import pytest
import torch

from tests.ops.checks import DTYPES, strided

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 63, 65, 128, 4095, 4096, 4097, 9001])
def test_equals_torch(sim, vocab, dtype):
    x = torch.randn(2, 2, vocab, generator=torch.Generator().manual_seed(vocab)).to(dtype)  # bfloat16 has ties
    assert torch.equal(sim.ops.argmax_rows(x), x.argmax(-1))
    assert torch.equal(sim.ops.argmax_rows(x.flatten(0, 1)), x.argmax(-1).flatten())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", [0.0, -INF, NAN])
def test_ties_and_special_values(sim, fill, dtype):
    cases = [{}, {3: 5.0, 4900: 5.0}, {4970: NAN}, {90: NAN, 65: NAN, 2: INF}, {99: INF, 98: INF}, {4998: -0.0}]
    x = torch.full((len(cases), 5000), fill, dtype=dtype)
    for row, values in zip(x, cases, strict=True):
        for at, value in values.items():
            row[at] = value
    assert torch.equal(sim.ops.argmax_rows(x), x.argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_and_rows_alone(sim, dtype):
    x = torch.randn(3, 5, 130, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(sim.ops.argmax_rows(strided(x)), x.argmax(-1))
    assert torch.equal(sim.ops.argmax_rows(x.transpose(0, 1)), x.transpose(0, 1).argmax(-1))
    assert torch.equal(sim.ops.argmax_rows(x[:, :, 1:]), x[:, :, 1:].argmax(-1))  # no 16-byte alignment
    assert torch.equal(sim.ops.argmax_rows(x[1:2].expand(4, 5, 130)), x[1:2].expand(4, 5, 130).argmax(-1))


def test_offsets_beyond_int32(simulator):
    stride = 2**31 + 64
    rows = torch.empty(stride + 70, dtype=torch.bfloat16).as_strided((2, 70), (stride, 1))  # two rows are touched
    rows.copy_(torch.arange(70).expand(2, 70))
    rows[1, 5] = 1000.0
    assert simulator.ops.argmax_rows(rows).tolist() == [69, 5]


def test_empty_and_bad_arguments(simulator):
    for shape in [(0, 5), (0, 3, 5), (2, 0, 5)]:
        assert simulator.ops.argmax_rows(torch.empty(shape)).shape == shape[:-1]
    with pytest.raises(RuntimeError, match="argmax_rows: logits must be float32"):
        simulator.ops.argmax_rows(torch.zeros(2, 3, dtype=torch.float64))
