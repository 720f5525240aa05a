"""Durian (arXiv 2602.21743): the std that divides an advantage is shared by questions of the same difficulty.

Within one prompt the std of a few rewards is noise: a nearly solved prompt gets huge advantages. Durian adds two
advantages whose std is that of all rewards of questions as hard to see (entropy of the picture's features) and as hard
to reason (the policy's own confidence). The mean stays the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diva_engine.algorithm.advantages import prompt_offsets, rescale_by_range, rewards_of
from diva_engine.algorithm.difficulty_groups import durian_advantage
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import PlanContext, PlanRun, ask_originals, ask_until_live
from diva_engine.algorithm.recipes import dapo
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, Problem, ScoredGroup


def plan(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    ask = ask_until_live if context.config.durian.base == "dapo" else ask_originals
    return (yield from ask(problems, context))


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    rewards = dapo.shaped_rewards(groups, config) if config.durian.base == "dapo" else rewards_of(groups)
    advantage = durian_advantage(rewards, groups, config)
    advantage = rescale_by_range(advantage, rewards, prompt_offsets(groups), config.advantage)
    return Credit(advantage, prefix_weight=rewards.new_zeros(len(groups)))


def needs_visual_entropy(config: Config) -> bool:
    return config.durian.w_perceptual > 0


RECIPE = Recipe(
    summary="Durian: GRPO with a std shared by questions as hard to see and as hard to reason",
    plan=plan,
    credit=credit,
    loss=clipped_policy_loss,
    needs_visual_entropy=needs_visual_entropy,
)
ON_DAPO = replace(
    RECIPE,
    summary="Durian on DAPO: live groups only, DAPO's clip and overlong penalty",
    defaults={**dapo.RECIPE.defaults, "durian.base": "dapo"},
)
