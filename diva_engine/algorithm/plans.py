"""What a step asks of the model, in one or more stages.

A plan is a generator. It is given the step's questions, yields a list of requests, is sent the scored groups of those
requests, may yield again, and returns the groups that the step trains on. The loop runs any plan without knowing which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.variant_effects import calibrated
from diva_engine.algorithm.variants import VariantSettings, always_drawable, draw_variants, original
from diva_engine.config import Config
from diva_engine.records import Problem, Request, ScoredGroup
from diva_engine.seeds import derive_random


def no_more_questions(count: int) -> list[Problem]:
    """For a plan that must do with the questions it was given."""
    return []


@dataclass(frozen=True)
class PlanContext:
    """What a plan may look at, and where it leaves its numbers."""

    config: Config
    ledger: DifficultyLedger
    step: int
    draw_more: Callable[[int], list[Problem]] = no_more_questions  # up to that many questions the step has not met
    metrics: dict[str, float] = field(default_factory=dict)  # written by the plan, logged with the step
    notes: list[str] = field(default_factory=list)  # written by the plan, each told to the user once a run
    is_drawable: Callable[[str], bool] = always_drawable  # whether a question can be drawn into its image


PlanRun = Generator[list[Request], list[ScoredGroup], list[ScoredGroup]]
Plan = Callable[[Sequence[Problem], PlanContext], PlanRun]


def ask_originals(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    """Every question once, as it stands: GRPO's plan."""
    num_rollouts = context.config.worker.rollout.n
    groups = yield [Request(original(p, context.ledger.level(p)), num_rollouts) for p in problems]
    return groups


def ask_originals_and_variants(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    """Every question as it stands and in variants of matching difficulty: DIVA's plan. Groups of a question stand
    together."""
    config = context.config
    settings = VariantSettings(config.variants, config.hint, context.is_drawable)
    requests = []
    for problem in problems:
        level = context.ledger.level(problem)
        draw = derive_random(config.data.seed, "variants", context.step, problem.id)
        variants = [
            calibrated(v, context.ledger.effects, config) for v in draw_variants(problem, level, settings, draw)
        ]
        posed = [original(problem, level), *variants]
        requests += [Request(variant, config.worker.rollout.n) for variant in posed]
    groups = yield requests
    return groups


def is_live(group: ScoredGroup, by: str) -> bool:
    """Whether the group's rewards, or its accuracies, are not all equal."""
    return len({score.reward if by == "reward" else score.accuracy for score in group.scores}) > 1


def ask_until_live(problems: Sequence[Problem], context: PlanContext) -> PlanRun:
    """Further questions until as many groups are live as questions were given: DAPO's dynamic sampling.

    A draw asks as many questions as the share of live groups so far says are missing, at most a whole batch.
    """
    settings, wanted = context.config.dapo, len(problems)
    live: list[ScoredGroup] = []
    batch, num_asked, num_draws = list(problems), 0, 0
    while batch:
        groups = yield from ask_originals(batch, context)
        num_draws, num_asked = num_draws + 1, num_asked + len(batch)
        live += [group for group in groups if is_live(group, settings.live_by)]
        missing = wanted - len(live)
        if missing <= 0 or num_draws == settings.max_draws:
            break
        expected = math.ceil(missing * num_asked / len(live)) if live else wanted
        batch = context.draw_more(min(wanted, expected))
    context.metrics.update(
        {
            "dapo/draws": float(num_draws),
            "dapo/questions_asked": float(num_asked),
            "dapo/live_groups": float(len(live)),
            "dapo/short_of_live_groups": float(max(0, wanted - len(live))),
        }
    )
    if len(live) < wanted:
        context.notes.append(
            f"fewer live groups than wanted after {settings.max_draws} draws or all questions; the step trains on what "
            "there is. Raise dapo.max_draws, or take questions that are neither solved nor hopeless"
        )
    return live[:wanted]


def join_groups(first: Sequence[ScoredGroup], more: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """The groups of two stages, by question: further rollouts of a prompt join its group, new prompts follow it."""
    groups = {group.variant.key: group for group in first}
    for group in more:
        known = groups.get(group.variant.key)
        groups[group.variant.key] = group if known is None else _joined(known, group)
    questions = {id: place for place, id in enumerate(dict.fromkeys(id for id, _ in groups))}
    return sorted(groups.values(), key=lambda group: questions[group.variant.problem.id])


def _joined(group: ScoredGroup, more: ScoredGroup) -> ScoredGroup:
    rollouts, scores = group.rollouts + more.rollouts, group.scores + more.scores
    return replace(group, request=replace(group.request, num_rollouts=len(rollouts)), rollouts=rollouts, scores=scores)
