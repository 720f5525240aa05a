"""What each kind of variant really does: its accuracy against that of its question's original, in the same step.

The shift of a variant is an assumption of the method. The running means here measure it, for this model and these
questions; `calibrated` puts the measurement in the assumption's place (docs/algorithms.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diva_engine.config import Config
from diva_engine.records import Variant

MOST_HINT_STEPS = 4  # hints of so many steps or more are counted together
DRAWN_TEXT = 7  # shifts 7 and 8 pose the same

Answered = tuple[Variant, list[float]]  # a variant and the accuracies of its rollouts, at least one


@dataclass(frozen=True)
class Effect:
    """Differences of accuracy, variant minus original, of one kind and strength: how many, their mean, their spread."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    @property
    def std_error(self) -> float:
        """Of the mean; NaN below two pairs."""
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else math.nan


class VariantEffects:
    """An `Effect` for each (kind, strength) met. Owns its state: `state_dict` restores it exactly."""

    def __init__(self) -> None:
        self._effects: dict[tuple[str, int], tuple[int, float, float]] = {}  # count, mean, squares, as in Effect

    def observe(self, answered: Sequence[Answered], originals: Mapping[str, float]) -> None:
        """Takes in what a step's variants achieved: one pair for each whose original was asked beside it.

        Args:
            originals: question id -> accuracy of its original in the step.
        """
        for variant, accuracies in answered:
            if variant.index > 0 and variant.problem.id in originals:
                place = place_of(variant)
                count, mean, squares = self._effects.get(place, (0, 0.0, 0.0))
                difference = math.fsum(accuracies) / len(accuracies) - originals[variant.problem.id]
                before = difference - mean  # Welford's update: exact to rounding, however many pairs there are
                mean += before / (count + 1)
                self._effects[place] = (count + 1, mean, squares + before * (difference - mean))

    def of(self, variant: Variant) -> Effect:
        return Effect(*self._effects.get(place_of(variant), ()))

    def table(self) -> list[tuple[str, int, Effect]]:
        """(kind, strength, effect), in their order."""
        return [(*place, Effect(*self._effects[place])) for place in sorted(self._effects)]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [[*place, *numbers] for place, numbers in self._effects.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._effects = {
            (kind, strength): (count, mean, squares) for kind, strength, count, mean, squares in state.get("rows", ())
        }


def place_of(variant: Variant) -> tuple[str, int]:
    """Kind and strength by which a variant is counted: steps shown by a hint, the shift of a changed picture, else 0.

    A variant that fell back to its original is counted as such: its effect is noise around 0, a check on the others.
    """
    if variant.kind == "hint":
        return variant.kind, min(variant.num_hint_steps, MOST_HINT_STEPS)
    return variant.kind, min(variant.shift, DRAWN_TEXT)


def calibrated(variant: Variant, effects: VariantEffects, config: Config) -> Variant:
    """The variant with the difficulty that its kind has shown, where `variants.calibrate` asks for that.

    An accuracy that is lower by e moves a question up by eta * e at its next visit: so much harder is the variant. The
    assumed shift counts as much as `variants.calibration_pairs` measured pairs.
    """
    if not config.variants.calibrate or variant.kind == "original":
        return variant
    effect, prior = effects.of(variant), config.variants.calibration_pairs
    measured = -config.difficulty.eta * effect.mean
    shift = (effect.count * measured + prior * variant.shift) / (effect.count + prior)
    return replace(variant, difficulty=variant.difficulty - variant.shift + shift)
