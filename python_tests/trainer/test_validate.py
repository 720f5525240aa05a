"""What a set of scored answers says: pass@k, and numbers by column."""

import dataclasses
import itertools
import math

import pytest

from diva_engine.records import Problem
from diva_engine.trainer.validate import Validation, column_value, pass_at_k
from python_tests.scored import make_group


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n):
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        answers = [i < right for i in range(n)]
        draws = list(itertools.combinations(answers, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_1_is_accuracy_and_pass_at_n_is_any():
    groups = [make_group([1.0, 0.0, 0.0, 1.0], "a"), make_group([0.0] * 4, "b"), make_group([0.0, 1.0, 0.0, 0.0], "c")]
    result = Validation(groups)
    assert result.pass_at(1) == pytest.approx(result.accuracy) == pytest.approx(3 / 12)
    assert result.pass_at(2) == pytest.approx((5 / 6 + 0 + 1 / 2) / 3)
    assert result.pass_at(4) == pytest.approx(2 / 3)


COLUMNS = {
    "level, rounded": ("difficulty", "7"),
    "text": ("subject", "areas"),
    "whole number": ("grade", "3"),
    "real number": ("weight", "0.5"),
    "inside a struct": ("info.split", "test"),
    "the answer": ("answer", "B"),
    "missing": ("author", "-"),
    "null": ("note", "-"),
}


@pytest.mark.parametrize(("column", "value"), COLUMNS.values(), ids=COLUMNS)
def test_the_value_of_a_column(column, value):
    extra = {"subject": "areas", "grade": 3, "weight": 0.5, "info": {"split": "test"}, "note": None}
    assert column_value(Problem("q", "?", "B", difficulty=7.4, extra=extra), column) == value


def group_of(value, reward):
    group = make_group([reward])
    problem = dataclasses.replace(group.variant.problem, extra={"grade": value})
    variant = dataclasses.replace(group.variant, problem=problem)
    return dataclasses.replace(group, request=dataclasses.replace(group.request, variant=variant))


def test_columns_stand_in_the_order_of_their_values():
    values = ["b", 10, 9, None, math.nan, "a", 9]
    result = Validation([group_of(value, float(i % 2)) for i, value in enumerate(values)])
    assert list(result.by("grade")) == ["9", "10", "-", "a", "b", "nan"]
    assert result.accuracy_by("grade")["9"] == 0.0
    assert [len(part.groups) for part in result.by("grade").values()] == [2, 1, 1, 1, 1, 1]
