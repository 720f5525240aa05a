"""Rewards and masks that a formula must survive: every group size, ragged, equal, zero, partial, signed."""

from __future__ import annotations

import random

from diva_engine.records import ScoredGroup
from python_tests.scored import make_group


def _binary(draw: random.Random, size: int) -> list[float]:
    return [float(draw.random() < 0.4) for _ in range(size)]


def _partial(draw: random.Random, size: int) -> list[float]:
    return [draw.choice((0.0, 0.1, 0.35, 0.9, 1.0)) for _ in range(size)]


def _signed(draw: random.Random, size: int) -> list[float]:
    return [draw.uniform(-1, 1) for _ in range(size)]


def reward_cases() -> dict[str, list[list[float]]]:
    """By name, the rewards of one step: a list for each group."""
    draw = random.Random(7)
    sizes = range(2, 17)
    cases = {f"groups of {n}": [_binary(draw, n), _partial(draw, n), _signed(draw, n)] for n in sizes}
    cases["ragged"] = [_partial(draw, n) for n in sizes]
    cases["ragged, with groups of one"] = [[1.0], _binary(draw, 5), [0.0], _signed(draw, 3)]
    cases["all equal"] = [[0.9] * 7, [0.1] * 4, [1.0] * 2]
    cases["all zero"] = [[0.0] * 8, [0.0] * 3]
    cases["one right of many"] = [[0.0] * 15 + [1.0], [1.0] * 15 + [0.0]]
    cases["all wrong, forms differ"] = [[0.1, 0.0, 0.0, 0.1], [0.0, 0.0, 1.0]]
    return cases


REWARDS = reward_cases()


def as_groups(rewards: list[list[float]]) -> list[ScoredGroup]:
    """Groups of different questions; answers of 1 to 7 tokens."""
    lengths = random.Random(3)
    return [
        make_group(found, f"q{i}", lengths=[lengths.randint(1, 7) for _ in found]) for i, found in enumerate(rewards)
    ]
