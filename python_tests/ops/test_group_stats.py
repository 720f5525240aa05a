from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from diva_engine.ops import group_stats
from diva_engine.ops.group_stats import group_stats_reference
from python_tests.ops import ragged

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
NAN, INF = float("nan"), float("inf")

# values, sizes -> mean, std, min, max; worked out by hand
GOLDEN = {
    "plain": ([1.0, 2.0, 3.0, 4.0], [4], [2.5], [1.2909944487358056], [1.0], [4.0]),
    "two": ([0.0, 1.0], [2], [0.5], [0.7071067811865476], [0.0], [1.0]),
    "group of one": ([0.7], [1], [0.7], [0.0], [0.7], [0.7]),
    "empty": ([], [0], [0.0], [0.0], [0.0], [0.0]),
    "ragged": ([1.0, 5.0, 5.0], [1, 0, 2], [1.0, 0.0, 5.0], [0.0] * 3, [1.0, 0.0, 5.0], [1.0, 0.0, 5.0]),
    "nan": ([1.0, NAN, 2.0, 3.0], [2, 2], [NAN, 2.5], [NAN, 0.7071067811865476], [NAN, 2.0], [NAN, 3.0]),
    "one infinite": ([1.0, INF], [2], [INF], [NAN], [1.0], [INF]),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("function", [group_stats, group_stats_reference])
def test_known_values(name, dtype, function):
    values, sizes, *expected = GOLDEN[name]
    result = function(torch.tensor(values, dtype=dtype), ragged.offsets_of(sizes))
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, torch.tensor(want, dtype=dtype), rtol=TOLERANCE[dtype], atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ragged.SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_definition(name, dtype):
    offsets = ragged.offsets_of(ragged.SIZES[name])
    values = torch.randn(int(offsets[-1]), generator=torch.Generator().manual_seed(1)).to(dtype)
    for got, want in zip(group_stats(values, offsets), group_stats_reference(values, offsets), strict=True):
        torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(sizes=ragged.sizes, seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_equals_the_definition_on_any_groups(sizes, seed, scale):
    offsets = ragged.offsets_of(sizes)
    values = scale * ragged.rewards(int(offsets[-1]), seed).double()
    for got, want in zip(group_stats(values, offsets), group_stats_reference(values, offsets), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("value", [0.1, 0.9, 1 / 3, -0.0, 1e30])
@pytest.mark.parametrize("size", [1, 3, 6, 7, 8, 10, 16, 33, 1025])
def test_equal_values_have_exactly_no_spread(value, size):
    stats = group_stats(torch.full((size,), value), ragged.offsets_of([size]))
    assert stats.std.item() == 0.0
    assert stats.mean.item() == torch.tensor(value).item()
    assert not torch.signbit(stats.std).item()


def test_reads_strided_input():
    values = torch.arange(20.0)[::2]
    offsets = torch.stack([ragged.offsets_of([4, 6])] * 2, dim=1)[:, 0]
    assert not values.is_contiguous()
    assert not offsets.is_contiguous()
    assert group_stats(values, offsets).mean.tolist() == [3.0, 13.0]


def test_many_threads_give_the_same_bits():
    offsets = ragged.offsets_of([n % 9 for n in range(20_000)])
    values = torch.randn(int(offsets[-1]))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    parallel = group_stats(values, offsets)
    torch.set_num_threads(1)
    serial = group_stats(values, offsets)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(parallel, serial, strict=True))


ONE = torch.ones(3)
THREE = torch.tensor([0, 3])
ERRORS = {
    "matrix": (torch.ones(3, 1), THREE, "values must have one dimension, not 2"),
    "integers": (torch.ones(3, dtype=torch.int64), THREE, "values must be Float"),
    "int32 offsets": (ONE, THREE.int(), "offsets must be Long, not Int"),
    "no offsets": (ONE, torch.zeros(0, dtype=torch.int64), "offsets must have at least one entry"),
    "late start": (ONE, torch.tensor([1, 3]), "offsets must begin with 0, not 1"),
    "early end": (ONE, torch.tensor([0, 2]), "offsets must end with 3, not 2"),
    "falling": (ONE, torch.tensor([0, 2, 1, 3]), "entry 1 is 2 and entry 2 is 1"),
    "wants gradient": (torch.ones(3, requires_grad=True), THREE, "no gradient flows"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    values, offsets, words = ERRORS[name]
    with pytest.raises((RuntimeError, ValueError), match=words):
        group_stats(values, offsets)


@pytest.mark.parametrize("sizes", [[3, 0, 1, 7], []])
def test_is_a_well_behaved_torch_op(sizes):
    offsets = ragged.offsets_of(sizes)
    opcheck(torch.ops.diva_engine.group_stats.default, (ragged.rewards(int(offsets[-1])), offsets))


def test_compiles_without_a_break():
    offsets = ragged.offsets_of([3, 4])
    values = ragged.rewards(7)
    compiled = torch.compile(lambda v, o: group_stats(v, o).std * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values, offsets), group_stats(values, offsets).std * 2)
