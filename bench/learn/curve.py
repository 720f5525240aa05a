"""From a run's curve to numbers: when a target was reached, the area under the curve, medians over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reached:
    """How much a run had spent when it reached a target; censored where it ended before."""

    spent: float
    is_censored: bool

    def __str__(self) -> str:
        return f">{self.spent:,.0f}" if self.is_censored else f"{self.spent:,.0f}"


def time_to_target(
    spent: Sequence[float],  # ascending: rollouts, steps or seconds at each evaluation
    accuracy: Sequence[float],
    target: float,
) -> Reached:
    """Where the accuracy is first at or above the target, on the straight line from the evaluation before."""
    for i, value in enumerate(accuracy):
        if value >= target:
            if i == 0:
                return Reached(spent[0], is_censored=False)
            share = (target - accuracy[i - 1]) / (value - accuracy[i - 1])
            return Reached(spent[i - 1] + share * (spent[i] - spent[i - 1]), is_censored=False)
    return Reached(spent[-1], is_censored=True)


def area_under_curve(spent: Sequence[float], accuracy: Sequence[float], until: float) -> float:
    """Mean accuracy from 0 to `until`, by trapezoids; NaN where the curve ends before."""
    if spent[-1] < until:
        return math.nan
    area = 0.0
    for i in range(1, len(spent)):
        left, right = spent[i - 1], min(spent[i], until)
        if right <= left:
            break
        share = (right - left) / (spent[i] - left)
        last = accuracy[i - 1] + share * (accuracy[i] - accuracy[i - 1])
        area += (right - left) * (accuracy[i - 1] + last) / 2
    return area / until


def median_reached(runs: Sequence[Reached]) -> Reached:
    """The median over seeds, a censored run counting as what it had spent; a lower bound where one such run is at or
    below it."""
    ordered = sorted(runs, key=lambda run: (run.spent, run.is_censored))
    upper = len(ordered) // 2
    value = statistics.fmean(run.spent for run in ordered[(len(ordered) - 1) // 2 : upper + 1])
    return Reached(value, any(run.is_censored for run in ordered[: upper + 1]))


def is_settled(accuracy: Sequence[Sequence[float]], targets: Sequence[float], evaluations: int = 2) -> bool:
    """Whether the last evaluations all lie at or above every target; `accuracy[i]` is the curve of target i."""
    return all(
        len(curve) >= evaluations and min(curve[-evaluations:]) >= target
        for curve, target in zip(accuracy, targets, strict=True)
    )
