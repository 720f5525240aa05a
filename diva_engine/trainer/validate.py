"""Held-out accuracy: every question once, greedily, and broken down by a column."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from diva_engine.algorithm.variants import original
from diva_engine.records import Problem, Request, ScoredGroup
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.stopwatch import Stopwatch


@dataclass(frozen=True)
class Validation:
    """What the policy can do on questions it was not trained on."""

    groups: list[ScoredGroup]

    @property
    def accuracy(self) -> float:
        return mean([score.accuracy for group in self.groups for score in group.scores])

    @property
    def format(self) -> float:
        return mean([score.format for group in self.groups for score in group.scores])

    @property
    def truncated(self) -> float:
        return mean([rollout.finish_reason == "length" for group in self.groups for rollout in group.rollouts])

    @property
    def mean_length(self) -> float:
        return mean([len(rollout.token_ids) for group in self.groups for rollout in group.rollouts])

    def accuracy_by(self, column: str) -> dict[str, float]:
        """Accuracy for each value of a column of the data, in the values' order; questions without it stand under
        "-"."""
        found: dict[str, list[float]] = defaultdict(list)
        for group in self.groups:
            found[column_value(group.variant.problem, column)] += [score.accuracy for score in group.scores]
        return {
            value: mean(accuracies) for value, accuracies in sorted(found.items(), key=lambda item: _natural(item[0]))
        }

    def count_by(self, column: str) -> Counter[str]:
        """Questions for each value of a column."""
        return Counter(column_value(group.variant.problem, column) for group in self.groups)

    def metrics(self, by: str) -> dict[str, float]:
        overall = {
            "val/accuracy": self.accuracy,
            "val/format": self.format,
            "val/truncated": self.truncated,
            "val/response_length": self.mean_length,
        }
        return overall | {f"val/accuracy/{by}={value}": share for value, share in self.accuracy_by(by).items()}


def validate(
    problems: Sequence[Problem], collector: Collector, *, batch_size: int, num_rollouts: int = 1
) -> Validation:
    """Asks every question as it stands; the collector's sampling says whether greedily. Ragged last batch included."""
    groups: list[ScoredGroup] = []
    for start in range(0, len(problems), batch_size):
        batch = [problems[i] for i in range(start, min(start + batch_size, len(problems)))]
        requests = [Request(original(problem, problem.difficulty or 0.0), num_rollouts) for problem in batch]
        groups += collector.ask(requests, step=0, stopwatch=Stopwatch())
    return Validation(groups)


def column_value(problem: Problem, column: str) -> str:
    value = problem.difficulty if column == "difficulty" else problem.extra.get(column)
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _natural(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
