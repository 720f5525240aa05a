"""Credit for the forced beginning of an answer: what it gained over the plain question, on its own tokens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from diva_engine.config import RescueConfig
from diva_engine.records import ScoredGroup


def prefix_gain(
    prefixed: Sequence[float],  # accuracies of the rollouts whose answer was forced to begin with the prefix
    plain: Sequence[float],  # accuracies of the question's plain rollouts
    eps: float = 1e-6,
) -> float:
    """How much the prefix raised the accuracy, in standard deviations of all of them together; 0 where it did not."""
    gain = statistics.fmean(prefixed) - statistics.fmean(plain)
    return gain / (statistics.stdev([*prefixed, *plain]) + eps) if gain > 0 else 0.0


def measured_gains(groups: Sequence[ScoredGroup], eps: float) -> list[float]:
    """[G]: the gain of each group's prefix over the question's plain group; 0 for groups without a prefix."""
    accuracies = [[score.accuracy for score in group.scores] for group in groups]
    plain = {g.variant.problem.id: found for g, found in zip(groups, accuracies, strict=True) if g.variant.index == 0}
    return [
        prefix_gain(found, plain[group.variant.problem.id], eps) if group.prompt.prefix_ids else 0.0
        for group, found in zip(groups, accuracies, strict=True)
    ]


def prefix_weights(
    groups: Sequence[ScoredGroup],
    gains: Sequence[float],  # [G]
    counts: Sequence[int],  # [G] rollouts that the prefix stands for
    settings: RescueConfig,
) -> Tensor:  # [G]
    """beta * count * gain, divided by the prefix's tokens with `normalize_prefix`; 0 for groups without a prefix."""
    weights = []
    for group, gain, count in zip(groups, gains, counts, strict=True):
        length = len(group.prompt.prefix_ids)
        share = 1 / length if settings.normalize_prefix and length else float(length > 0)
        weights.append(settings.beta * count * gain * share)
    return torch.tensor(weights)
