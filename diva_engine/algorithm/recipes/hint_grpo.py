"""Hint-GRPO (arXiv 2503.23905): a question is posed with longer and longer hints; the first that works is trained on.

Group i is shown the first i / M of the reference steps, at the start of its answer. Hint tokens are prompt: they carry
no loss. `hint_grpo.ladder=lazy` (this project's) generates a longer hint only where all shorter ones failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.hint_ladder import climb, ladder, ladder_metrics, select_group
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import PlanContext, PlanRun
from diva_engine.algorithm.recipes.grpo import credit
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.records import Problem, Request


def plan(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    settings, num_rollouts = context.config.hint_grpo, context.config.worker.rollout.n
    ladders = [ladder(problem, context.ledger.level(problem), context.config) for problem in problems]
    if settings.ladder == "lazy":
        groups = yield from climb(ladders, context)
    else:
        groups = yield [Request(variant, num_rollouts) for rungs in ladders for variant in rungs]
    chosen = [select_group([g for g in groups if g.variant.problem.id == p.id], settings) for p in problems]
    trained = [group for group in chosen if group is not None]
    context.metrics.update(ladder_metrics(groups, trained, num_rollouts * sum(map(len, ladders))))
    return trained


RECIPE = Recipe(
    summary="Hint-GRPO: answers begun with more and more steps, the first that works counts; reads reference steps",
    plan=plan,
    credit=credit,
    loss=clipped_policy_loss,
    defaults={
        "hint.inject": "answer",
        "difficulty.accuracy_over": "originals",
        "worker.actor.loss_avg_mode": "seq",
    },
)
