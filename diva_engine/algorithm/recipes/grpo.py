"""GRPO (arXiv 2402.03300): each question once; advantage = z-score of the reward within its prompt's rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.advantages import group_zscore, prompt_offsets, rescale_by_range, rewards_of
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import ask_originals
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    rewards, offsets = rewards_of(groups), prompt_offsets(groups)
    advantage = group_zscore(rewards, offsets, std=config.advantage.std, eps=config.advantage.eps)
    advantage = rescale_by_range(advantage, rewards, offsets, config.advantage)
    return Credit(advantage, prefix_weight=rewards.new_zeros(len(groups)))


RECIPE = Recipe(
    summary="GRPO: z-score of the reward within each prompt",
    plan=ask_originals,
    credit=credit,
    loss=clipped_policy_loss,
)
