"""Rescue (this project's): probe, rescue, credit the prefix.

Every question is probed with a few plain rollouts. The rest of the step's rollouts goes to the questions that are not
solved: to a live one plainly, to a dead one with its answer forced to begin with steps of its reference solution. What
such a beginning gains over the plain question is credited to its own tokens, so that the policy learns to write it.
"""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.advantages import group_zscore, prompt_offsets, rescale_by_range, rewards_of
from diva_engine.algorithm.difficulty_groups import durian_advantage
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import PlanContext, PlanRun, join_groups
from diva_engine.algorithm.prefix_credit import measured_gains, prefix_weights
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.algorithm.rescue_stages import observe_hints, one_stage_requests, probe_requests, rescue_requests
from diva_engine.config import Config
from diva_engine.records import Credit, Problem, ScoredGroup, UserError


def plan(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    if context.config.rescue.dead_by == "probe":
        plain = yield probe_requests(problems, context)
        more = yield rescue_requests(plain, context)
    else:
        groups = yield one_stage_requests(problems, context)
        plain = [group for group in groups if group.variant.index == 0]
        more = [group for group in groups if group.variant.index > 0]
    observe_hints(plain, more, context)
    return join_groups(plain, more)


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    rewards, offsets = rewards_of(groups), prompt_offsets(groups)
    if config.rescue.shared_std:
        advantage = durian_advantage(rewards, groups, config)
    else:
        advantage = group_zscore(rewards, offsets, std=config.advantage.std, eps=config.advantage.eps)
    advantage = rescale_by_range(advantage, rewards, offsets, config.advantage)
    gains = measured_gains(groups, config.advantage.eps)
    weights = prefix_weights(groups, gains, [len(group.scores) for group in groups], config.rescue)
    return Credit(advantage, weights, {"rescue/prefix_gain": sum(gains) / max(1, sum(gain > 0 for gain in gains))})


def needs_visual_entropy(config: Config) -> bool:
    return config.rescue.shared_std and config.durian.w_perceptual > 0


def check(config: Config) -> None:
    if config.worker.rollout.n <= config.rescue.probe:
        raise UserError(
            f"worker.rollout.n={config.worker.rollout.n} leaves nothing to rescue with after rescue.probe="
            f"{config.rescue.probe}; raise the one or lower the other"
        )


RECIPE = Recipe(
    summary="Rescue: dead questions' answers begun with steps, what that gains credited to them; reads reference steps",
    plan=plan,
    credit=credit,
    check=check,
    loss=clipped_policy_loss,
    defaults={"difficulty.accuracy_over": "originals", "hint.inject": "answer"},
    needs_visual_entropy=needs_visual_entropy,
)
