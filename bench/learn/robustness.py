"""References that are not what one would wish: wrong, in other words, or very long."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from diva_engine.demo import tiles
from diva_engine.records import Problem

WRONG_SHARE = 0.4


def clean(problem: Problem) -> Problem:
    return problem


def wrong(problem: Problem) -> Problem:
    """The steps of 40 % of the questions name random counts and totals; which questions, their ids say."""
    draw = random.Random(f"wrong {problem.id}")
    if draw.random() >= WRONG_SHARE:
        return problem
    return replace(problem, steps=tuple(_with_random_numbers(step, draw) for step in problem.steps))


def paraphrased(problem: Problem) -> Problem:
    """Steps in other words than the model's own: "count red : 6 . the sum is 19 ;"."""
    return replace(problem, steps=tuple(re.sub(r"(\w+) (\d+) = (\d+)", r"count \1 : \2 . the sum is \3", step)
                                        for step in problem.steps))  # fmt: skip


def long(problem: Problem) -> Problem:
    """Every step is said, and then said again three times over."""
    return replace(problem, steps=tuple(" ".join([step] * 4) for step in problem.steps))


def _with_random_numbers(step: str, draw: random.Random) -> str:
    step = re.sub(r"(?<=[a-z] )\d+(?= =)", lambda _: str(draw.randint(1, tiles.MAX_DOTS)), step)
    return re.sub(r"(?<== )\d+", lambda _: str(draw.randrange(tiles.MODULUS)), step)


REFERENCES: Mapping[str, Callable[[Problem], Problem]] = {
    "clean": clean,
    "wrong": wrong,
    "paraphrased": paraphrased,
    "long": long,
}
