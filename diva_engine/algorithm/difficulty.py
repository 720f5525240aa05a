"""The difficulty ledger: how hard each question is for the policy as it is now, measured by its own rollouts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diva_engine import ops
from diva_engine.algorithm.hint_control import HintState
from diva_engine.config import DifficultyConfig
from diva_engine.records import Problem, ScoredGroup, UserError

PASS_RATE_DECAY = 0.5  # weight of the newest visit in the running pass rate
COLUMNS: Mapping[str, float | int] = {  # what a row holds before anything is known; the type says the column's
    "difficulty": math.nan,
    "pass_rate": math.nan,
    "last_accuracy": math.nan,
    "visits": 0,
    "last_step": -1,
    "hint_steps": 0,
    "hint_failures": 0,
    "visual_entropy": math.nan,
    "visual_entropy_step": -1,
}


class DifficultyLedger:
    """What is known of each question, one row a question met.

    Owns its state: `state_dict` restores it exactly.
    """

    difficulty: Tensor  # [M] float32, level in [1, 9]
    pass_rate: Tensor  # [M] float32, running; NaN before the first visit
    last_accuracy: Tensor  # [M] float32, of the last visit; NaN before the first
    visits: Tensor  # [M] int64
    last_step: Tensor  # [M] int64, -1 before the first visit
    hint_steps: Tensor  # [M] int64, steps that the next hint shows; 0 before the first hint
    hint_failures: Tensor  # [M] int64, see HintState
    visual_entropy: Tensor  # [M] float32, NaN before the first look
    visual_entropy_step: Tensor  # [M] int64, step of the last look, -1 before the first

    def __init__(self, settings: DifficultyConfig) -> None:
        self.settings = settings
        self._row: dict[str, int] = {}
        for name, blank in COLUMNS.items():
            setattr(self, name, torch.tensor([blank])[:0])

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
        rows = torch.tensor(self._rows_of([problems[id] for id in accuracies]))
        accuracy = torch.tensor(list(accuracies.values()))
        settings = self.settings
        ops.update_difficulty(
            self.difficulty,
            rows,
            accuracy,
            eta=settings.eta,
            low=settings.low,
            high=settings.high,
            rule=settings.rule,
        )
        seen = self.pass_rate[rows]
        blended = seen + PASS_RATE_DECAY * (accuracy - seen)
        self.pass_rate[rows] = torch.where(self.visits[rows] == 0, accuracy, blended)
        self.last_accuracy[rows] = accuracy
        self.visits[rows] += 1
        self.last_step[rows] = step

    def was_dead(self, problem: Problem) -> bool:
        """Whether the question's last visit had no right rollout."""
        row = self._row.get(problem.id)
        return row is not None and float(self.last_accuracy[row]) == 0

    def hint(self, problem: Problem) -> HintState:
        """How much of its solution the question is shown next."""
        row = self._row.get(problem.id)
        return HintState() if row is None else HintState(int(self.hint_steps[row]), int(self.hint_failures[row]))

    def set_hint(self, problem: Problem, state: HintState) -> None:
        row = self._row_of(problem)
        self.hint_steps[row], self.hint_failures[row] = state.num_steps, state.failures

    def lacks_visual_entropy(self, problem: Problem, step: int, refresh_every: int = 0) -> bool:
        """Whether the question's pictures are to be looked at: never done, or `refresh_every` steps ago (0: once)."""
        row = self._row.get(problem.id)
        if row is None or self.visual_entropy_step[row] < 0:
            return True
        return refresh_every > 0 and step - int(self.visual_entropy_step[row]) >= refresh_every

    def set_visual_entropy(self, problem: Problem, entropy: float, step: int) -> None:
        row = self._row_of(problem)
        self.visual_entropy[row], self.visual_entropy_step[row] = entropy, step

    def visual_entropy_of(self, problem: Problem) -> float:
        """In nats; NaN before the first look, and where the question has no picture."""
        row = self._row.get(problem.id)
        return math.nan if row is None else float(self.visual_entropy[row])

    def mean_difficulty(self, problems: Sequence[Problem]) -> float:
        return sum(self.level(problem) for problem in problems) / len(problems)

    def state_dict(self) -> dict[str, Any]:
        return {"ids": list(self._row)} | {name: getattr(self, name).clone() for name in COLUMNS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._row = {id: row for row, id in enumerate(state["ids"])}
        for name in COLUMNS:
            column = state.get(name, torch.empty(0))
            if len(column) != len(self._row):
                rows = f"{len(column)} rows for {len(self._row)} questions"
                raise UserError(f"the ledger's {name} has {rows}; take another checkpoint")
            setattr(self, name, column.clone())

    def _initial(self, problem: Problem) -> float:
        level = self.settings.initial if problem.difficulty is None else problem.difficulty
        return min(max(level, self.settings.low), self.settings.high)

    def _row_of(self, problem: Problem) -> int:
        return self._rows_of([problem])[0]

    def _rows_of(self, problems: Sequence[Problem]) -> list[int]:
        """The problems' rows; those never met get new ones, all at once, for each growth copies the columns."""
        new = {problem.id: problem for problem in problems if problem.id not in self._row}
        if new:
            self._row.update(zip(new, range(len(self._row), len(self._row) + len(new)), strict=True))
            for name, blank in COLUMNS.items():
                values = [self._initial(p) if name == "difficulty" else blank for p in new.values()]
                setattr(self, name, torch.cat([getattr(self, name), torch.tensor(values)]))
        return [self._row[problem.id] for problem in problems]


def accuracy_by_question(groups: Sequence[ScoredGroup], over: str = "all") -> dict[str, float]:
    """Mean accuracy of each question's rollouts, over all its prompts, its original only, or its variants only."""
    scores: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        is_original = group.variant.index == 0
        if over == "all" or is_original == (over == "originals"):
            scores[group.variant.problem.id] += [score.accuracy for score in group.scores]
    return {id: sum(values) / len(values) for id, values in scores.items()}
