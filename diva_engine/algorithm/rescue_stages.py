"""The stages of Rescue: which questions are probed, who gets the rest of the step's rollouts, what hints come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diva_engine.algorithm.hint_control import after_hint, after_rest, first_hint, is_resting
from diva_engine.algorithm.plans import PlanContext
from diva_engine.algorithm.variants import VariantSettings, draw_perturbed, hinted, original
from diva_engine.records import Problem, Request, ScoredGroup, Variant
from diva_engine.seeds import derive_random


def probe_requests(problems: Sequence[Problem], context: PlanContext) -> list[Request]:
    """A few plain rollouts of every question; fewer of one that was solved on its last visit."""
    return [Request(original(p, context.ledger.level(p)), _num_probes(p, context)) for p in problems]


def _num_probes(problem: Problem, context: PlanContext) -> int:
    settings = context.config.rescue
    wanted = settings.probe_solved if context.ledger.was_solved(problem) else settings.probe
    return min(wanted, context.config.worker.rollout.n)


def rescue_requests(probes: Sequence[ScoredGroup], context: PlanContext) -> list[Request]:
    """The rest of the step's rollouts, shared evenly among the questions that are not solved (all, if all are)."""
    config = context.config
    second = [(group, _second_variant(group, context)) for group in probes]
    wanting = [(group, variant) for group, variant in second if group.mean_accuracy < 1 or variant.index > 0]
    wanting = wanting or second
    derive_random(config.data.seed, "rescue", context.step).shuffle(wanting)
    left = sum(max(0, config.worker.rollout.n - len(group.rollouts)) for group in probes)
    shares = even_shares(left, len(wanting), config.rescue.max_rollouts)
    return [
        Request(variant, share, first_sample=len(group.rollouts) if variant.index == 0 else 0)
        for (group, variant), share in zip(wanting, shares, strict=True)
        if share
    ]


def one_stage_requests(problems: Sequence[Problem], context: PlanContext) -> list[Request]:
    """All of the step's rollouts at once: plain ones; for questions whose last visit was dead the probe, then hints."""
    num_rollouts = context.config.worker.rollout.n
    requests = []
    for request in probe_requests(problems, context):
        hint = _next_hint(request.variant, context) if context.ledger.was_dead(request.variant.problem) else None
        num_hinted = num_rollouts - request.num_rollouts if hint else 0
        requests.append(replace(request, num_rollouts=num_rollouts - num_hinted))
        if hint and num_hinted:
            requests.append(Request(hint, num_hinted))
    return requests


def even_shares(total: int, count: int, most: int) -> list[int]:
    """`total` in `count` shares that differ by one at most, none above `most`; the larger ones first."""
    return [min(most, (total + count - 1 - i) // count) for i in range(count)]


def observe_hints(probes: Sequence[ScoredGroup], more: Sequence[ScoredGroup], context: PlanContext) -> None:
    """Takes in what the hints of the step did, and counts the visits of questions that rest from hints."""
    settings, ledger = context.config.rescue, context.ledger
    shown = {group.variant.problem.id: group for group in more if group.variant.kind == "hint"}
    dead = [group.variant.problem for group in probes if group.mean_accuracy == 0]
    resting = [problem for problem in dead if is_resting(ledger.hint(problem), settings)]
    for problem in resting:
        ledger.set_hint(problem, after_rest(ledger.hint(problem), settings))
    for group in shown.values():
        problem, most = group.variant.problem, most_steps(group.variant.problem)
        before = first_hint(ledger.hint(problem), most)
        ledger.set_hint(problem, after_hint(before, most, group.mean_accuracy, settings))
    context.metrics.update(
        {
            "rescue/dead_questions": len(dead) / max(1, len(probes)),
            "rescue/hinted_questions": len(shown) / max(1, len(probes)),
            "rescue/resting_questions": len(resting) / max(1, len(probes)),
            "rescue/rescued": sum(group.mean_accuracy > 0 for group in shown.values()) / max(1, len(shown)),
        }
    )


def most_steps(problem: Problem) -> int:
    """The longest hint: all reference steps but the last, which holds the answer."""
    return max(0, len(problem.steps) - 1)


def _second_variant(group: ScoredGroup, context: PlanContext) -> Variant:
    """How the question is posed in the second stage; its plain form where nothing else fits."""
    config, problem = context.config, group.variant.problem
    if group.mean_accuracy == 0 and len(group.rollouts) >= config.rescue.probe:  # a slip in fewer needs no hint
        return _next_hint(group.variant, context) or group.variant
    if group.mean_accuracy == 1 and config.rescue.perturb_solved:
        settings = VariantSettings(config.variants, config.hint, context.is_drawable)
        draw = derive_random(config.data.seed, "variants", context.step, problem.id)
        variant = draw_perturbed(problem, group.variant.difficulty, settings, draw)
        return group.variant if variant.fallback else variant
    return group.variant


def _next_hint(variant: Variant, context: PlanContext) -> Variant | None:
    """The question with the hint that its past asks for; None where it has no steps, or rests from hints."""
    config, problem = context.config, variant.problem
    state, most = context.ledger.hint(problem), most_steps(problem)
    if not config.rescue.hints or most == 0 or is_resting(state, config.rescue):
        return None
    return hinted(problem, variant.difficulty, min(first_hint(state, most).num_steps, most), config.hint)
