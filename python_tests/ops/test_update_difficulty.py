from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diva_engine.ops import update_difficulty
from diva_engine.ops.update_difficulty import RULES, update_difficulty_reference

DTYPES = [torch.float32, torch.float64]

# rule, difficulty, accuracy -> new difficulty
GOLDEN = {
    "all wrong": ("continuous", 5.0, 0.0, 7.0),
    "all right": ("continuous", 5.0, 1.0, 3.0),
    "half right": ("continuous", 5.0, 0.5, 5.0),
    "one of four": ("continuous", 2.5, 0.25, 3.5),
    "clipped above": ("continuous", 8.5, 0.0, 9.0),
    "clipped below": ("continuous", 1.5, 1.0, 1.0),
    "step, all right": ("steps", 5.0, 1.0, 3.0),
    "step, above 0.8": ("steps", 5.0, 0.875, 3.0),
    "step, 4 of 5": ("steps", 5.0, 4 / 5, 4.0),
    "step, 3 of 5": ("steps", 5.0, 3 / 5, 5.0),
    "step, 2 of 5": ("steps", 5.0, 2 / 5, 5.0),
    "step, 1 of 5": ("steps", 5.0, 1 / 5, 6.0),
    "step, all wrong": ("steps", 5.0, 0.0, 7.0),
    "step, clipped": ("steps", 8.0, 0.0, 9.0),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [update_difficulty, update_difficulty_reference])
def test_known_values(name, dtype, function):
    rule, before, accuracy, after = GOLDEN[name]
    table = torch.tensor([4.0, before, 4.0], dtype=dtype)
    updated = function(table, torch.tensor([1]), torch.tensor([accuracy], dtype=dtype), rule=rule)
    assert updated.tolist() == [after]
    assert table.tolist() == [4.0, after, 4.0]


@pytest.mark.parametrize("size", [0, 1, 31, 33, 1023, 1025])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(size, rule, dtype):
    generator = torch.Generator().manual_seed(size)
    ours = 1 + 8 * torch.rand(2000, generator=generator, dtype=dtype)
    theirs = ours.clone()
    index = torch.randperm(2000, generator=generator)[:size]
    accuracy = torch.randint(0, 11, (size,), generator=generator).to(dtype) / 10
    settings = {"rule": rule, "eta": 3.0, "low": 2.0, "high": 8.0}
    updated = update_difficulty(ours, index, accuracy, **settings)
    assert torch.equal(updated, update_difficulty_reference(theirs, index, accuracy, **settings))
    assert torch.equal(ours, theirs)


def test_works_in_place_on_a_column():
    columns = torch.full((3, 2), 5.0)
    update_difficulty(columns[:, 1], torch.tensor([2, 0]), torch.tensor([1.0, 0.0]))
    assert columns.tolist() == [[5.0, 7.0], [5.0, 5.0], [5.0, 3.0]]


HALF = torch.tensor([0.5, 0.5])
ERRORS = {
    "repeated": (torch.tensor([7, 7]), HALF, "index 7 stands more than once"),
    "too high": (torch.tensor([1, 10]), HALF, "index 10 is not between 0 and 9"),
    "below zero": (torch.tensor([-1, 1]), HALF, "index -1 is not between 0 and 9"),
    "not a number": (torch.tensor([1, 2]), torch.tensor([0.5, float("nan")]), r"accuracy\[1\] is nan"),
    "above one": (torch.tensor([1, 2]), torch.tensor([1.5, 0.5]), r"accuracy\[0\] is 1.5, not between 0 and 1"),
    "an accuracy too many": (torch.tensor([1]), HALF, "accuracy must have 1 entries, not 2"),
    "double accuracy": (torch.tensor([1, 2]), HALF.double(), "accuracy must be Float like the other tensors"),
    "int32 index": (torch.tensor([1, 2], dtype=torch.int32), HALF, "index must be Long, not Int"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong_and_changes_nothing(name):
    index, accuracy, words = ERRORS[name]
    table = torch.full((10,), 5.0)
    with pytest.raises(RuntimeError, match=words):
        update_difficulty(table, index, accuracy)
    assert torch.equal(table, torch.full((10,), 5.0))


def test_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="rule must be one of continuous, steps, not 'paper'"):
        update_difficulty(torch.ones(2), torch.tensor([0]), torch.tensor([0.5]), rule="paper")


def test_is_a_well_behaved_torch_op():
    arguments = (torch.full((9,), 5.0), torch.tensor([3, 1]), torch.tensor([0.2, 0.9]), 4.0, 1.0, 9.0, 0)
    opcheck(torch.ops.diva_engine.update_difficulty.default, arguments)


def test_compiles_without_a_break():
    def step(table, index, accuracy):
        return update_difficulty(table, index, accuracy) + table[0]

    index, accuracy = torch.tensor([0, 2]), torch.tensor([0.0, 1.0])
    ours, theirs = torch.full((4,), 5.0), torch.full((4,), 5.0)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ours, index, accuracy), step(theirs, index, accuracy))
    assert torch.equal(ours, theirs)
