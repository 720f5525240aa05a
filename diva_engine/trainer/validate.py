"""Held-out accuracy: every question as it stands, greedily or sampled, and broken down by columns of the data."""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diva_engine.algorithm.variants import original
from diva_engine.data.columns import lookup
from diva_engine.records import Problem, Request, ScoredGroup, UserError
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

    def pass_at(self, k: int) -> float:
        """Mean over the questions of the chance that at least one of k answers is right; k at most the answers each."""
        return mean([pass_at_k(len(group.scores), num_right(group), k) for group in self.groups])

    def by(self, column: str) -> dict[str, Validation]:
        """The questions of each value of a column, in the values' order; those without one stand under "-"."""
        found: dict[str, list[ScoredGroup]] = defaultdict(list)
        for group in self.groups:
            found[column_value(group.variant.problem, column)].append(group)
        return {value: Validation(found[value]) for value in sorted(found, key=_natural)}

    def accuracy_by(self, column: str) -> dict[str, float]:
        return {value: part.accuracy for value, part in self.by(column).items()}

    def metrics(self, by: str) -> dict[str, float]:
        overall = {
            "val/accuracy": self.accuracy,
            "val/format": self.format,
            "val/truncated": self.truncated,
            "val/response_length": self.mean_length,
        }
        return overall | {f"val/accuracy/{by}={value}": share for value, share in self.accuracy_by(by).items()}


def validate(
    problems: Sequence[Problem],
    collector: Collector,
    *,
    batch_size: int,
    num_rollouts: int = 1,
    on_batch: Callable[[int], None] = lambda num_questions: None,
) -> Validation:
    """Asks every question as it stands; the collector's sampling says whether greedily. Ragged last batch included.

    `on_batch` is told the number of questions of each batch when its answers are scored.
    """
    groups: list[ScoredGroup] = []
    for start in range(0, len(problems), batch_size):
        batch = [problems[i] for i in range(start, min(start + batch_size, len(problems)))]
        requests = [Request(original(problem, problem.difficulty or 0.0), num_rollouts) for problem in batch]
        groups += collector.ask(requests, step=0, stopwatch=Stopwatch())
        on_batch(len(batch))
    return Validation(groups)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate, from `right` right answers among n, of the chance that one of k answers is right."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def num_right(group: ScoredGroup) -> int:
    return sum(score.accuracy >= 1 for score in group.scores)


def column_value(problem: Problem, column: str) -> str:
    """A problem's value in a column, as text; "difficulty" is its level, rounded; a dotted name looks in structs."""
    if column == "difficulty":
        return "-" if problem.difficulty is None else str(round(problem.difficulty))
    value = problem.answer if column == "answer" else lookup(problem.extra, column)
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def refuse_unknown_column(problems: Sequence[Problem], column: str, setting: str) -> None:
    """Raises UserError where no question has a value in the column that `setting` names."""
    if column in ("difficulty", "answer") or any(lookup(p.extra, column) is not None for p in problems):
        return
    known = sorted({"answer", "difficulty"}.union(*(p.extra for p in problems)))
    nearest = difflib.get_close_matches(column, known, n=1)
    mend = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    raise UserError(f"{setting}: no question has such a column; {mend}")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by size, then texts by letters."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return (0, number, value) if math.isfinite(number) else (1, 0.0, value)
