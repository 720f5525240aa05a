from __future__ import annotations

import pytest
import torch

from diva_engine.ops import group_stats
from python_tests.emulation import kernels
from python_tests.ops import ragged

SOURCE = "group_stats/group_stats_cuda.cu"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("group_stats"), SOURCE)


def run(library, values, offsets):
    outputs = [torch.full((len(offsets) - 1,), -7.0) for _ in range(4)]
    kernels.launch(library, "diva_group_stats_cuda", values, len(values), offsets, len(offsets) - 1, *outputs)
    return outputs


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("name", ragged.SIZES)
@pytest.mark.parametrize("kind", ["rewards", "normal", "zeros of both signs"])
def test_the_kernel_has_the_bits_of_the_cpu(library, name, kind):
    offsets = ragged.offsets_of(ragged.SIZES[name])
    count = int(offsets[-1])
    values = {
        "rewards": ragged.rewards(count),
        "normal": torch.randn(count, generator=torch.Generator().manual_seed(3)),
        "zeros of both signs": torch.zeros(count) * (1 - 2 * (torch.arange(count) % 3 % 2)),
    }[kind]
    for got, want in zip(run(library, values, offsets), group_stats(values, offsets), strict=True):
        assert same_bits(got, want)


def test_nan_and_infinity_travel_alike(library):
    values = torch.tensor([1.0, float("nan"), 2.0, float("inf"), 3.0, float("inf"), float("inf")])
    offsets = ragged.offsets_of([3, 2, 2])
    for got, want in zip(run(library, values, offsets), group_stats(values, offsets), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_wrong_offsets_read_nothing_outside(library):
    values = torch.ones(4)
    minimum = run(library, values, torch.tensor([-5, 2, 99, 1, 3]))[2]
    assert minimum.tolist() == [1.0, 1.0, 0.0, 1.0]


FAULTS = {
    "another constant": {"(kGroupStatsThreads / kLanes) +": "(kGroupStatsThreads / kLanes - 1) +"},
    "lanes that start one late": {"segment.count, lane)": "segment.count, lane + 1)"},
    "the offsets of the neighbour": {"offsets, g, num_values": "offsets, g + 1 < num_groups ? g + 1 : g, num_values"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    offsets = ragged.offsets_of(ragged.SIZES["many small"])
    values = torch.randn(int(offsets[-1]), generator=torch.Generator().manual_seed(4))
    wanted = group_stats(values, offsets)
    got = run(library, values, offsets)
    assert not all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))
