"""RLOO (arXiv 2402.14740): each answer against the mean of the prompt's other answers.

Leaving the answer itself out makes the baseline independent of it, so the gradient is unbiased. The whole answer is one
action: its tokens are summed, and the sum is divided by a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.advantages import leave_one_out, prompt_offsets, rescale_by_range, rewards_of
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import ask_originals
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    rewards, offsets = rewards_of(groups), prompt_offsets(groups)
    advantage = rescale_by_range(leave_one_out(rewards, offsets), rewards, offsets, config.advantage)
    return Credit(advantage, prefix_weight=rewards.new_zeros(len(groups)))


RECIPE = Recipe(
    summary="RLOO: reward minus the mean of the prompt's other answers; an answer is one action",
    plan=ask_originals,
    credit=credit,
    loss=clipped_policy_loss,
    defaults={"worker.actor.loss_avg_mode": "constant"},
)
