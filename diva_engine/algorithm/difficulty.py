"""The difficulty ledger: how hard each question is for the policy as it is now, measured by its own rollouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diva_engine.config import DifficultyConfig
from diva_engine.records import Problem, ScoredGroup, UserError

PASS_RATE_DECAY = 0.5  # weight of the newest visit in the running pass rate


class DifficultyLedger:
    """One row a question: level D in [1, 9], running pass rate, visits, last step.

    Owns its state: `state_dict` restores it exactly.
    """

    def __init__(self, settings: DifficultyConfig) -> None:
        self.settings = settings
        self._row: dict[str, int] = {}
        self.difficulty = torch.empty(0)  # [M] float32
        self.pass_rate = torch.empty(0)  # [M] float32, NaN before the first visit
        self.visits = torch.empty(0, dtype=torch.int64)  # [M]
        self.last_step = torch.empty(0, dtype=torch.int64)  # [M], -1 before the first visit

    def level(self, problem: Problem) -> float:
        """The question's difficulty; a question never met starts at its record's level, or at the setting's."""
        row = self._row.get(problem.id)
        return self._initial(problem) if row is None else float(self.difficulty[row])

    def observe(self, groups: Sequence[ScoredGroup], step: int) -> None:
        """Takes in what the step's rollouts say: one update a question, from the accuracy that the settings name."""
        accuracies = accuracy_by_question(groups, self.settings.accuracy_over)
        if not accuracies:
            return
        problems = {group.variant.problem.id: group.variant.problem for group in groups}
        rows = torch.tensor([self._row_of(problems[id]) for id in accuracies])
        accuracy = torch.tensor(list(accuracies.values()))
        self.difficulty[rows] = updated_difficulty(self.difficulty[rows], accuracy, self.settings)
        seen = self.pass_rate[rows]
        blended = seen + PASS_RATE_DECAY * (accuracy - seen)
        self.pass_rate[rows] = torch.where(self.visits[rows] == 0, accuracy, blended)
        self.visits[rows] += 1
        self.last_step[rows] = step

    def mean_difficulty(self, problems: Sequence[Problem]) -> float:
        return sum(self.level(problem) for problem in problems) / len(problems)

    def state_dict(self) -> dict[str, Any]:
        return {
            "ids": list(self._row),
            "difficulty": self.difficulty.clone(),
            "pass_rate": self.pass_rate.clone(),
            "visits": self.visits.clone(),
            "last_step": self.last_step.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._row = {id: row for row, id in enumerate(state["ids"])}
        for name in ("difficulty", "pass_rate", "visits", "last_step"):
            if len(state[name]) != len(self._row):
                raise UserError(
                    f"the ledger's {name} has {len(state[name])} rows for {len(self._row)} questions; "
                    "take another checkpoint"
                )
            setattr(self, name, state[name].clone())

    def _initial(self, problem: Problem) -> float:
        level = self.settings.initial if problem.difficulty is None else problem.difficulty
        return min(max(level, self.settings.low), self.settings.high)

    def _row_of(self, problem: Problem) -> int:
        if problem.id not in self._row:
            self._row[problem.id] = len(self._row)
            self.difficulty = torch.cat([self.difficulty, torch.tensor([self._initial(problem)])])
            self.pass_rate = torch.cat([self.pass_rate, torch.tensor([float("nan")])])
            self.visits = torch.cat([self.visits, torch.zeros(1, dtype=torch.int64)])
            self.last_step = torch.cat([self.last_step, torch.full((1,), -1)])
        return self._row[problem.id]


def updated_difficulty(
    difficulty: Tensor,  # [Q]
    accuracy: Tensor,  # [Q] mean accuracy of the question's rollouts
    settings: DifficultyConfig,
) -> Tensor:  # [Q]
    """The new levels. `continuous`: D + eta * (0.5 - accuracy), the paper's; `steps`: the authors' table, its dead
    branch mended."""
    if settings.rule == "continuous":
        shift = settings.eta * (0.5 - accuracy)
    else:
        shift = torch.zeros_like(difficulty)
        for above, step in ((0.6, -1.0), (0.8, -2.0)):
            shift = torch.where(accuracy > above, step, shift)
        for below, step in ((0.4, 1.0), (0.2, 2.0)):
            shift = torch.where(accuracy < below, step, shift)
    return (difficulty + shift).clamp(settings.low, settings.high)


def accuracy_by_question(groups: Sequence[ScoredGroup], over: str = "all") -> dict[str, float]:
    """Mean accuracy of each question's rollouts, over all its prompts, its original only, or its variants only."""
    scores: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        is_original = group.variant.index == 0
        if over == "all" or is_original == (over == "originals"):
            scores[group.variant.problem.id] += [score.accuracy for score in group.scores]
    return {id: sum(values) / len(values) for id, values in scores.items()}
