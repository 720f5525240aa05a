"""Counts what a method does with its rollouts: how many teach, how hard the questions are, how advantage is spread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup

MEANS = ("originals/dead", "questions/utilisation", "difficulty/mean", "response/length", "actor/entropy")


@dataclass
class Tally:
    """Numbers of one run, gathered between evaluations."""

    nonzero: int = 0  # rollouts with an advantage
    teaching: int = 0  # these, and rollouts whose forced prefix is trained
    # (level of the variant, answers of its prompt that were right, this one right) -> [count, sum of advantages]
    cells: dict[tuple[int, int, bool], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def counting(self, recipe: Recipe) -> Recipe:
        """The same recipe; its credit is seen by this tally."""

        def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
            given = recipe.credit(groups, config)
            self._observe(groups, given)
            return given

        return replace(recipe, credit=credit)

    def take(self, steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """What the steps since the last evaluation did; empties the counts."""
        rollouts = sum(metrics["step/rollouts"] for metrics in steps)
        if not rollouts:
            return {}
        found = {"nonzero": self.nonzero / rollouts, "teaching": self.teaching / rollouts}
        for name in MEANS:
            values = [metrics[name] for metrics in steps if name in metrics]
            found[name.split("/")[0] if name == "difficulty/mean" else name.split("/")[1]] = sum(values) / max(
                1, len(values)
            )
        self.nonzero = self.teaching = 0
        return {name: round(value, 4) for name, value in found.items()}

    def surface(self) -> list[list[Any]]:
        """Rows of (level, right answers of the prompt, right, count, mean advantage), in order."""
        return [[*key, int(count), round(total / count, 4)] for key, (count, total) in sorted(self.cells.items())]

    def _observe(self, groups: Sequence[ScoredGroup], credit: Credit) -> None:
        advantages = credit.advantage.split([len(group.rollouts) for group in groups])
        for group, advantage, weight in zip(groups, advantages, credit.prefix_weight.tolist(), strict=True):
            nonzero = int((advantage != 0).sum())
            self.nonzero += nonzero
            self.teaching += len(group.rollouts) if weight else nonzero
            num_right = sum(score.accuracy > 0 for score in group.scores)
            for score, value in zip(group.scores, advantage.tolist(), strict=True):
                cell = self.cells[round(group.variant.difficulty), num_right, score.accuracy > 0]
                cell[0] += 1
                cell[1] += value
