"""What a step's rollouts say, as numbers for the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from diva_engine.records import ScoredGroup
from diva_engine.trainer.validate import mean


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Means over all rollouts that the step generated, and shares over its groups and questions."""
    scores = [score for group in groups for score in group.scores]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = {
        "reward/mean": mean([score.reward for score in scores]),
        "reward/accuracy": mean([score.accuracy for score in scores]),
        "reward/format": mean([score.format for score in scores]),
        "groups/dead": mean([group.mean_accuracy == 0 for group in groups]),
        "groups/solved": mean([group.mean_accuracy == 1 for group in groups]),
        "originals/dead": mean([group.mean_accuracy == 0 for group in groups if group.variant.index == 0]),
        "questions/utilisation": data_utilisation(groups),
        "response/length": mean([len(rollout.token_ids) for rollout in rollouts]),
        "response/truncated": mean([rollout.finish_reason == "length" for rollout in rollouts]),
        "variants/fallbacks": float(sum(group.variant.fallback for group in groups)),
        "variants/hint_steps": mean(
            [group.variant.num_hint_steps for group in groups if group.variant.kind == "hint"] or [0]
        ),
        "step/rollouts": float(len(rollouts)),
        "step/tokens": float(sum(len(rollout.token_ids) for rollout in rollouts)),
    }
    return metrics | _accuracy_by_kind(groups) | _extra_scores(groups)


def data_utilisation(groups: Sequence[ScoredGroup]) -> float:
    """Share of questions whose rewards are not all equal: those from which a group-relative advantage can learn."""
    rewards: dict[str, set[float]] = defaultdict(set)
    for group in groups:
        rewards[group.variant.problem.id].update(group.rewards)
    return mean([len(found) > 1 for found in rewards.values()])


def _accuracy_by_kind(groups: Sequence[ScoredGroup]) -> Mapping[str, float]:
    by_kind: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        by_kind[group.variant.kind].append(group.mean_accuracy)
    return {f"accuracy/{kind}": mean(found) for kind, found in sorted(by_kind.items())}


def _extra_scores(groups: Sequence[ScoredGroup]) -> Mapping[str, float]:
    extra: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for score in group.scores:
            for name, value in score.extra.items():
                extra[f"reward/{name}"].append(value)
    return {name: mean(values) for name, values in extra.items()}
