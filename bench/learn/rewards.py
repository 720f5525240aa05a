"""Rewards of the regimes, scored in the run's own process: the answers are a dozen words of a fixed form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diva_engine.records import Problem, Score

ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1
FORM = re.compile(r"<think>.*</think> \\boxed\{ (-?\d+) \}")


@dataclass(frozen=True)
class DerivationReward:
    """0.9 * accuracy + 0.1 * format, for every family of questions. Right is the whole derivation (the question's
    `solution`), so that no lucky number counts, or, with `answer_only`, the final number."""

    answer_only: bool = False
    scores_alone = True

    def __call__(
        self, responses: Sequence[str], problems: Sequence[Problem], response_lengths: Sequence[int], /
    ) -> list[Score]:
        return [self._score(" ".join(text.split()), problem) for text, problem in zip(responses, problems, strict=True)]

    def take_counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """There is nothing to close: no process was started."""

    def _score(self, text: str, problem: Problem) -> Score:
        form = FORM.fullmatch(text)
        answer = form[1] if form else None
        is_right = answer == problem.answer if self.answer_only else text == problem.extra["solution"]
        accuracy, format = float(is_right), float(form is not None)
        return Score(ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * format, accuracy, format)
