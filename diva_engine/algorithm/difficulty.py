"""The difficulty ledger: how hard each question is for the policy as it is now, measured by its own rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diva_engine import ops
from diva_engine.algorithm.hint_control import HintState
from diva_engine.algorithm.variant_effects import Answered, VariantEffects
from diva_engine.config import DifficultyConfig
from diva_engine.records import Problem, ScoredGroup, UserError

PASS_RATE_DECAY = 0.5  # weight of the newest visit in the running pass rate
# What a row holds before anything is known; the type says the column's. The first are moved by a step's rollouts, all
# rows at once, and live on the device; the others are noted on the host: rests with the step, the rest by plans and
# preparations, one by one.
MEASURED: Mapping[str, float | int] = {
    "difficulty": math.nan,
    "pass_rate": math.nan,
    "last_accuracy": math.nan,
    "visits": 0,
    "last_step": -1,
}
NOTED: Mapping[str, float | int] = {
    "hint_steps": 0,
    "hint_failures": 0,
    "solved_in_row": 0,
    "rest": 0,
    "visual_entropy": math.nan,
    "visual_entropy_step": -1,
}
COLUMNS = {**MEASURED, **NOTED}


class DifficultyLedger:
    """What is known of each question, one row a question met, and of what the kinds of variants do (`effects`).

    Owns its state: `state_dict` restores it exactly. Equal groups in any order leave equal rows, so ranks that observe
    the same step agree.
    """

    difficulty: Tensor  # [M] float32, level in [1, 9]
    pass_rate: Tensor  # [M] float32, running; NaN before the first visit
    last_accuracy: Tensor  # [M] float32, of the last visit; NaN before the first
    visits: Tensor  # [M] int64
    last_step: Tensor  # [M] int64, -1 before the first visit
    hint_steps: Tensor  # [M] int64, steps that the next hint shows; 0 before the first hint
    hint_failures: Tensor  # [M] int64, see HintState
    solved_in_row: Tensor  # [M] int64, visits up to the last whose rollouts were all right
    rest: Tensor  # [M] int64, how often the question is still passed over
    visual_entropy: Tensor  # [M] float32, NaN before the first look
    visual_entropy_step: Tensor  # [M] int64, step of the last look, -1 before the first

    def __init__(self, settings: DifficultyConfig, device: str | torch.device = "cpu") -> None:
        self.settings = settings
        self.effects = VariantEffects()
        self._device = torch.device(device)
        self._row: dict[str, int] = {}
        self._host: dict[str, npt.NDArray[np.float32]] = {}  # measured columns as read on the host, until they change
        for name, blank in COLUMNS.items():
            setattr(self, name, torch.tensor([blank], device=self._device_of(name))[:0])

    @property
    def ids(self) -> list[str]:
        """The questions, in the order of the rows."""
        return list(self._row)

    def level(self, problem: Problem) -> float:
        """The question's difficulty; a question never met starts at its record's level, or at the setting's."""
        row = self._row.get(problem.id)
        return self._initial(problem) if row is None else float(self._read("difficulty")[row])

    def observe(self, groups: Sequence[ScoredGroup], step: int) -> None:
        """Takes in what the step's rollouts say: one update a question, from the accuracy that the settings name."""
        answered = answered_variants(groups)
        originals, over = accuracy_by_question(answered, "originals"), self.settings.accuracy_over
        self.effects.observe(answered, originals)
        accuracies = originals if over == "originals" else accuracy_by_question(answered, over)
        if not accuracies:
            return
        if not accuracies.keys() <= self._row.keys():
            self._rows_of([variant.problem for variant, _ in answered if variant.problem.id in accuracies])
        own_rows = torch.tensor([self._row[id] for id in accuracies])
        self._let_rest(own_rows, torch.tensor([accuracy == 1 for accuracy in accuracies.values()]))
        rows = own_rows.to(self._device)
        accuracy = torch.tensor(list(accuracies.values()), dtype=torch.float32, device=self._device)
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
        self._host.clear()

    def rests(self, id: str) -> bool:
        """Whether a question, solved when it was last posed, is to be passed over."""
        row = self._row.get(id) if self.settings.rest_solved else None
        return row is not None and int(self.rest[row]) > 0

    def pass_over(self, ids: Sequence[str]) -> None:
        """Questions that rest were met and not posed."""
        if ids:
            self.rest[[self._row[id] for id in ids]] -= 1

    def was_dead(self, problem: Problem) -> bool:
        """Whether the question's last visit had no right rollout."""
        row = self._row.get(problem.id)
        return row is not None and float(self._read("last_accuracy")[row]) == 0

    def was_solved(self, problem: Problem) -> bool:
        """Whether all rollouts of the question's last visit were right."""
        row = self._row.get(problem.id)
        return row is not None and float(self.last_accuracy[row]) == 1

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

    def warm_start(self, rows: Mapping[str, Mapping[str, float | int]]) -> None:
        """Begins with what another run has found, by question id: a difficulty each, and of the other columns what is
        known.

        Difficulties are brought into the settings' range. The other run's steps are not this one's: questions count as
        visited before the first step, and pictures as looked at in it.
        """
        self._row = {id: row for row, id in enumerate(rows)}
        for name, blank in COLUMNS.items():
            values = [row.get(name, blank) for row in rows.values()]
            column = torch.tensor(values, dtype=torch.tensor(blank).dtype, device=self._device_of(name))
            setattr(self, name, column)
        self.difficulty = self.difficulty.clamp(self.settings.low, self.settings.high)
        self.last_step.fill_(-1)
        self.visual_entropy_step = torch.where(self.visual_entropy.isnan(), -1, 0)
        self._host.clear()

    def state_dict(self) -> dict[str, Any]:
        columns = {name: getattr(self, name).to("cpu", copy=True) for name in COLUMNS}
        return {"ids": self.ids, **columns, "effects": self.effects.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._row = {id: row for row, id in enumerate(state["ids"])}
        # A checkpoint may be older than what plans note: then nothing is known of it.
        unknown = {name: torch.tensor(value).expand(len(self._row)) for name, value in NOTED.items()}
        for name in COLUMNS:
            column = state.get(name, unknown.get(name, torch.empty(0)))
            if len(column) != len(self._row):
                rows = f"{len(column)} rows for {len(self._row)} questions"
                raise UserError(f"the ledger's {name} has {rows}; take another checkpoint")
            setattr(self, name, column.to(self._device_of(name), copy=True))
        self.effects.load_state_dict(state.get("effects", {}))
        self._host.clear()

    def _let_rest(self, rows: Tensor, is_solved: Tensor) -> None:
        """A question rests once after its first solved visit, twice as long after each further one in a row."""
        in_row = torch.where(is_solved, self.solved_in_row[rows] + 1, 0)
        doubled = 2 ** (in_row - 1).clamp(0, 30)
        self.solved_in_row[rows] = in_row
        self.rest[rows] = torch.where(is_solved, doubled, 0).clamp(max=self.settings.rest_solved)

    def _device_of(self, name: str) -> torch.device:
        return self._device if name in MEASURED else torch.device("cpu")

    def _read(self, name: str) -> npt.NDArray[np.float32]:
        """A measured column on the host: of a GPU's one copy a step, however many questions ask."""
        if name not in self._host:
            self._host[name] = getattr(self, name).cpu().numpy()
        return self._host[name]

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
                added = torch.tensor(values, device=self._device_of(name))
                setattr(self, name, torch.cat([getattr(self, name), added]))
            self._host.clear()
        return [self._row[problem.id] for problem in problems]


def answered_variants(groups: Sequence[ScoredGroup]) -> list[Answered]:
    """Each group's variant with the accuracies of its rollouts; groups without rollouts are left out."""
    return [(group.variant, [score.accuracy for score in group.scores]) for group in groups if group.scores]


def accuracy_by_question(answered: Sequence[Answered], over: str = "all") -> dict[str, float]:
    """Mean accuracy of each question's rollouts, over all its prompts, its original only, or its variants only."""
    found: dict[str, list[float]] = {}
    for variant, accuracies in answered:
        if over == "all" or (variant.index == 0) == (over == "originals"):
            known = found.get(variant.problem.id)
            found[variant.problem.id] = accuracies if known is None else known + accuracies
    # fsum is exact to its one rounding, so the order in which ranks' groups were gathered does not matter.
    return {id: math.fsum(values) / len(values) for id, values in found.items()}
