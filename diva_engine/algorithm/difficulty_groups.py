"""Durian's groups: questions that are as hard to see, or as hard to reason, as each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diva_engine import ops
from diva_engine.algorithm.advantages import group_zscore, prompt_offsets
from diva_engine.config import Config
from diva_engine.records import ScoredGroup

EASY_TO_SEE, MIDDLE, HARD_TO_SEE = range(3)


def durian_advantage(rewards: Tensor, groups: Sequence[ScoredGroup], config: Config) -> Tensor:
    """rewards [N] -> [N]: `durian_sum` over the groups of a step."""
    entropy = torch.tensor([group.visual_entropy for group in groups])
    mean_logprobs = reasoning_scores(groups) if config.durian.w_reasoning else None
    return durian_sum(rewards, prompt_offsets(groups), entropy, mean_logprobs, config)


def durian_sum(
    rewards: Tensor,  # [N]
    offsets: Tensor,  # [P + 1]
    visual_entropy: Tensor | None,  # [P], NaN without a picture
    mean_logprobs: Tensor | None,  # [P] mean over the prompt's rollouts of their summed log-probabilities
    config: Config,
) -> Tensor:  # [N]
    """The weighted sum of three advantages. Each is the reward minus its prompt's mean, divided by the std of the
    prompt, of its perceptual group, and of its reasoning group. A weight of 0 leaves its part out, and needs no scores.
    """
    settings, eps = config.durian, config.advantage.eps
    advantage = settings.w_original * group_zscore(rewards, offsets, std=config.advantage.std, eps=eps)
    if settings.w_perceptual and visual_entropy is not None:
        seen = perceptual_groups(visual_entropy)
        advantage = advantage + settings.w_perceptual * ops.shared_std_advantage(rewards, offsets, seen, 3, eps)
    if settings.w_reasoning and mean_logprobs is not None:
        count = settings.num_reasoning_groups
        reasoned = quantile_groups(mean_logprobs, count)
        advantage = advantage + settings.w_reasoning * ops.shared_std_advantage(rewards, offsets, reasoned, count, eps)
    return advantage


def perceptual_groups(entropy: Tensor) -> Tensor:
    """entropy [P], NaN without a picture -> [P] int64: 0 up to the 25th percentile of the known ones, 2 from the 75th
    on, 1 between and without a picture. Where the two percentiles are one value, it is in group 0."""
    known = entropy[~entropy.isnan()]
    groups = torch.full((len(entropy),), MIDDLE, device=entropy.device)
    if not len(known):
        return groups
    low, high = torch.quantile(known, known.new_tensor([0.25, 0.75]))
    groups[entropy >= high] = HARD_TO_SEE
    groups[entropy <= low] = EASY_TO_SEE
    return groups


def quantile_groups(scores: Tensor, num_groups: int) -> Tensor:
    """scores [P] -> [P] int64 in [0, num_groups): rank * num_groups // P, the rank counting the scores below.

    Equal scores share a group: that of the lowest of them.
    """
    rank = (scores[None, :] < scores[:, None]).sum(dim=1)
    return rank * num_groups // max(1, len(scores))


def reasoning_scores(groups: Sequence[ScoredGroup]) -> Tensor:
    """[P] float64: the mean over the prompt's rollouts of their summed log-probabilities, as they were sampled."""
    sums = [[sum(rollout.logprobs) for rollout in group.rollouts] for group in groups]
    return torch.tensor([sum(found) / max(1, len(found)) for found in sums], dtype=torch.float64)
