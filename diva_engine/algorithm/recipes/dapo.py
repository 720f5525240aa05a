"""DAPO (arXiv 2503.14476): only groups that teach, a wider upper clip, every token equal, a price on overlong answers.

Groups of equal rewards are dropped and further questions drawn until the batch is full of live groups, at most
`dapo.max_draws` times.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diva_engine.algorithm.advantages import group_zscore, prompt_offsets, rescale_by_range, rewards_of
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import ask_until_live
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    rewards, offsets = shaped_rewards(groups, config), prompt_offsets(groups)
    advantage = group_zscore(rewards, offsets, std=config.advantage.std, eps=config.advantage.eps)
    advantage = rescale_by_range(advantage, rewards, offsets, config.advantage)
    return Credit(advantage, prefix_weight=rewards.new_zeros(len(groups)))


def shaped_rewards(groups: Sequence[ScoredGroup], config: Config) -> Tensor:
    """[N]: the rewards, less a penalty that rises over the last tokens that an answer may have."""
    longest, settings = config.data.max_response_length, config.dapo
    lengths = torch.tensor([float(len(rollout.token_ids)) for group in groups for rollout in group.rollouts])
    if settings.overlong_share == 0:
        return rewards_of(groups)
    buffer = settings.overlong_share * longest
    excess = ((lengths - (longest - buffer)) / buffer).clamp(0, 1)
    return rewards_of(groups) - settings.overlong_penalty * excess


RECIPE = Recipe(
    summary="DAPO: GRPO on live groups only, drawn anew; wider upper clip, overlong penalty",
    plan=ask_until_live,
    credit=credit,
    loss=clipped_policy_loss,
    defaults={
        "worker.actor.clip_ratio_low": 0.2,
        "worker.actor.clip_ratio_high": 0.28,
        "worker.actor.loss_avg_mode": "token",
    },
)
