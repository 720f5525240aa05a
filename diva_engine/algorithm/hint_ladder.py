"""Hint-GRPO's ladder: a question with more and more of its reference steps, and which rung is trained on."""

from __future__ import annotations

from collections.abc import Sequence

from diva_engine.algorithm.plans import PlanContext, PlanRun, is_live
from diva_engine.algorithm.variants import hinted, original
from diva_engine.config import Config, HintGrpoConfig
from diva_engine.records import Problem, Request, ScoredGroup, Variant


def ladder(problem: Problem, difficulty: float, config: Config) -> list[Variant]:
    """The question with the first floor(L * i / M) of its L steps for i = 0 .. M - 1.

    A rung that shows no more than the one below it is left out: it would be the same prompt again.
    """
    num_groups = config.hint_grpo.groups
    rungs, shown = [original(problem, difficulty)], 0
    for i in range(1, num_groups):
        num_steps = len(problem.steps) * i // num_groups
        if num_steps > shown:
            rungs.append(hinted(problem, difficulty, num_steps, config.hint, index=i))
            shown = num_steps
    return rungs


def climb(ladders: Sequence[Sequence[Variant]], context: PlanContext) -> PlanRun:
    """One rung a stage, asked only of the questions that have had no positive rollout."""
    num_rollouts = context.config.worker.rollout.n
    groups: list[ScoredGroup] = []
    rung = 0
    while asked := [rungs[rung] for rungs in ladders if rung < len(rungs)]:
        found = yield [Request(variant, num_rollouts) for variant in asked]
        groups += found
        failed = {g.variant.problem.id for g in found if not is_positive(g, context.config.hint_grpo)}
        ladders = [rungs for rungs in ladders if rungs[0].problem.id in failed]
        rung += 1
    return groups


def is_positive(group: ScoredGroup, settings: HintGrpoConfig) -> bool:
    """Whether any of the group's rollouts succeeded."""
    return any((s.accuracy if settings.positive_by == "accuracy" else s.reward) > 0 for s in group.scores)


def select_group(groups: Sequence[ScoredGroup], settings: HintGrpoConfig) -> ScoredGroup | None:
    """The one group of a question that is trained on: the first that fits, shortest hint first, else the shortest."""
    ordered = sorted(groups, key=lambda group: group.variant.index)
    for group in ordered:
        fits = is_positive(group, settings) if settings.select == "first_positive" else is_live(group, "reward")
        if fits:
            return group
    return ordered[0] if ordered else None


def ladder_metrics(
    groups: Sequence[ScoredGroup], trained: Sequence[ScoredGroup], num_rollouts_of_all: int
) -> dict[str, float]:
    """What the step has cost, for each group that teaches and against generating every rung."""
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    num_live = sum(is_live(group, "reward") for group in trained)
    return {
        "hint_grpo/live_groups": float(num_live),
        "hint_grpo/tokens_per_live_group": num_tokens / max(1, num_live),
        "hint_grpo/rollout_share": sum(len(group.rollouts) for group in groups) / max(1, num_rollouts_of_all),
        "hint_grpo/hint_steps": sum(group.variant.num_hint_steps for group in trained) / max(1, len(trained)),
    }
