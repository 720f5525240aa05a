from __future__ import annotations

import ctypes

import pytest
import torch

from diva_engine.ops import update_difficulty
from diva_engine.ops.update_difficulty import RULES
from python_tests.emulation import kernels

SOURCE = "update_difficulty/update_difficulty_cuda.cu"


class Table(ctypes.Structure):
    _fields_ = [("levels", ctypes.c_void_p), ("stride", ctypes.c_int64), ("size", ctypes.c_int64)]


class Settings(ctypes.Structure):
    _fields_ = [*[(name, ctypes.c_float) for name in ("eta", "low", "high")], ("rule", ctypes.c_int64)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("update_difficulty"), SOURCE)


def run(library, table, index, accuracy, rule="continuous"):
    updated = torch.full_like(accuracy, -7.0)
    where = Table(table.data_ptr(), table.stride(0), len(table))
    settings = Settings(4.0, 1.0, 9.0, RULES.index(rule))
    arguments = (ctypes.byref(where), index, accuracy, len(index), ctypes.byref(settings), updated)
    kernels.launch(library, "diva_update_difficulty_cuda", *arguments)
    return updated


def entries(size):
    generator = torch.Generator().manual_seed(size)
    table = 1 + 8 * torch.rand(3000, generator=generator)
    accuracy = torch.randint(0, 11, (size,), generator=generator) / 10
    return table, torch.randperm(3000, generator=generator)[:size], accuracy


@pytest.mark.parametrize("size", [0, 1, 31, 33, 1023, 1025])
@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_has_the_bits_of_the_cpu(library, size, rule):
    ours, index, accuracy = entries(size)
    theirs = ours.clone()
    assert torch.equal(run(library, ours, index, accuracy, rule), update_difficulty(theirs, index, accuracy, rule=rule))
    assert torch.equal(ours, theirs)


def test_works_in_place_on_a_column(library):
    columns = torch.full((3, 2), 5.0)
    run(library, columns[:, 1], torch.tensor([2, 0]), torch.tensor([1.0, 0.0]))
    assert columns.tolist() == [[5.0, 7.0], [5.0, 5.0], [5.0, 3.0]]


def test_a_bad_entry_changes_nothing_and_shows_as_nan(library):
    table = torch.full((10,), 5.0)
    index = torch.tensor([4, 7, 4, 10, -1, 1, 2, 3])
    accuracy = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.5, float("nan"), 1.0])
    updated = run(library, table, index, accuracy)
    assert updated.isnan().tolist() == [True, False, True, True, True, True, True, False]
    assert table.tolist() == [5, 5, 5, 3, 5, 5, 5, 7, 5, 5]


FAULTS = {
    "repeats not looked for": {"times == 1 &&": "times >= 1 &&"},
    "one entry too few": {"if (i >= count) return;": "if (i >= count - 1) return;"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    updated = run(library, torch.full((10,), 5.0), torch.tensor([4, 4, 2]), torch.tensor([0.0, 1.0, 1.0]))
    assert updated.isnan().tolist() != [True, True, False] or updated[2] != 3.0
