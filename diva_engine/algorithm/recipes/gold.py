"""Gold: GRPO, and the reference steps of dead questions taught as they stand.

Rescue without its second generation: the weight of a dead question's prefix is 1, whether or not it helps. Only for
references one trusts.
"""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import PlanContext, PlanRun, ask_originals, join_groups
from diva_engine.algorithm.prefix_credit import prefix_weights
from diva_engine.algorithm.recipes import grpo
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.algorithm.rescue_stages import most_steps
from diva_engine.algorithm.variants import hinted
from diva_engine.config import Config
from diva_engine.records import Credit, Problem, Request, ScoredGroup, UserError


def plan(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    groups = yield from ask_originals(problems, context)
    dead = [g.variant for g in groups if g.mean_accuracy == 0 and most_steps(g.variant.problem) > 0]
    taught = [hinted(v.problem, v.difficulty, most_steps(v.problem), context.config.hint) for v in dead]
    prefixes = yield [Request(variant, num_rollouts=0) for variant in taught]
    return join_groups(groups, prefixes)


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    """A prefix weighs as much as the question's rollouts would if they all were it."""
    gains, counts = [1.0] * len(groups), [config.worker.rollout.n] * len(groups)
    weights = prefix_weights(groups, gains, counts, config.rescue)
    return Credit(grpo.credit(groups, config).advantage, weights)


def check(config: Config) -> None:
    if config.hint.inject != "answer":
        raise UserError("gold teaches the beginning of the answer; it needs hint.inject=answer")


RECIPE = Recipe(
    summary="Gold: GRPO, and dead questions' steps taught without generating anew; reads reference steps",
    plan=plan,
    credit=credit,
    check=check,
    loss=clipped_policy_loss,
    defaults={"difficulty.accuracy_over": "originals", "hint.inject": "answer"},
)
