"""Pieces that credit rules are made of: the groups of a step as flat tensors, and scores within groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from diva_engine import ops
from diva_engine.config import AdvantageConfig
from diva_engine.records import ScoredGroup

ALL_WRONG, ALL_WRONG_FACTOR = 0.15, 0.1  # DIVA's code: groups with no reward above the first are scaled by the second


def rewards_of(groups: Sequence[ScoredGroup]) -> Tensor:
    """[N] float32: the rewards of all rollouts, group after group."""
    return torch.tensor([reward for group in groups for reward in group.rewards])


def prompt_offsets(groups: Sequence[ScoredGroup]) -> Tensor:
    """[G + 1] int64: where each prompt's rollouts begin in `rewards_of`."""
    return torch.tensor([0, *accumulate(len(group.scores) for group in groups)])


def question_offsets(groups: Sequence[ScoredGroup]) -> Tensor:
    """[Q + 1] int64: where each question's prompts begin among the groups, which stand together by question."""
    runs = [len(list(run)) for _, run in groupby(groups, key=lambda group: group.variant.problem.id)]
    if len(runs) != len({group.variant.problem.id for group in groups}):
        raise ValueError("the groups of a question must stand together")
    return torch.tensor([0, *accumulate(runs)])


def group_zscore(
    rewards: Tensor,  # [N]
    offsets: Tensor,  # [G + 1]
    *,
    std: str = "sample",
    eps: float = 1e-6,
) -> Tensor:  # [N]
    """(r - mean) / (std + eps) within each group; exactly 0 in groups of one and of equal rewards."""
    lengths = offsets.diff()
    stats = ops.group_stats(rewards, offsets)
    spread = stats.std if std == "sample" else stats.std * population_factor(lengths)
    centred = rewards - stats.mean.repeat_interleave(lengths)
    # Float rounding of the mean leaves a residue in groups of equal rewards; it is no signal.
    live = (stats.max > stats.min).repeat_interleave(lengths)
    return torch.where(live, centred / (spread.repeat_interleave(lengths) + eps), 0.0)


def group_centred(
    rewards: Tensor,  # [N]
    offsets: Tensor,  # [G + 1]
) -> Tensor:  # [N]
    """r - mean within each group; exactly 0 in groups of one and of equal rewards."""
    lengths = offsets.diff()
    stats = ops.group_stats(rewards, offsets)
    return rewards - stats.mean.repeat_interleave(lengths)


def leave_one_out(
    rewards: Tensor,  # [N]
    offsets: Tensor,  # [G + 1]
) -> Tensor:  # [N]
    """r minus the mean of the group's other rewards, = n / (n - 1) * (r - mean); 0 in groups of one."""
    n = offsets.diff().to(rewards.dtype)
    return group_centred(rewards, offsets) * (n / (n - 1).clamp(min=1)).repeat_interleave(offsets.diff())


def rescale_by_range(
    advantage: Tensor,  # [N]
    rewards: Tensor,  # [N]
    offsets: Tensor,  # [G + 1]
    settings: AdvantageConfig,
) -> Tensor:  # [N]
    """The advantage faded where its group's rewards hardly differ, as `advantage.rrb` says."""
    if settings.rrb == "none":
        return advantage
    stats = ops.group_stats(rewards, offsets)
    factor = (stats.max - stats.min) / settings.r_max
    if settings.rrb == "threshold":
        factor = torch.where(stats.max < ALL_WRONG, ALL_WRONG_FACTOR, 1.0)
    return advantage * factor.repeat_interleave(offsets.diff())


def population_factor(lengths: Tensor) -> Tensor:
    """What turns a standard deviation over n - 1 into one over n."""
    n = lengths.clamp(min=1).to(torch.float32)
    return ((n - 1) / n).sqrt()


def diva_terms(settings: AdvantageConfig) -> dict[str, Any]:
    """The settings as `ops.diva_advantage` takes them."""
    terms = dataclasses.asdict(settings)
    if settings.balance == "global_only":
        terms |= {"balance": "none", "w_local": 0.0}
    return terms
