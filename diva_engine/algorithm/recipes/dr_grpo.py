"""Dr. GRPO (arXiv 2503.20783): GRPO without its two biases.

The advantage is not divided by the group's standard deviation, which favours questions that are nearly solved or nearly
hopeless; the loss is not divided by each answer's length, which favours long wrong answers, but by one constant.
"""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.advantages import group_centred, prompt_offsets, rescale_by_range, rewards_of
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import ask_originals
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    rewards, offsets = rewards_of(groups), prompt_offsets(groups)
    advantage = rescale_by_range(group_centred(rewards, offsets), rewards, offsets, config.advantage)
    return Credit(advantage, prefix_weight=rewards.new_zeros(len(groups)))


RECIPE = Recipe(
    summary="Dr. GRPO: reward minus the prompt's mean, undivided; tokens summed over a constant length",
    plan=ask_originals,
    credit=credit,
    loss=clipped_policy_loss,
    defaults={"worker.actor.loss_avg_mode": "constant"},
)
