"""The regimes: which questions are trained on, which are held out, and the model that each begins with.

They are coloured-tile sums of the embedded default (`diva_engine.demo.tiles`) or, of another family, sums as text from
a public package (`bench.learn.chains`). A regime is a mixture of levels, one entry a level, the same for training and
held-out questions; its hard levels are those that the base hardly ever solves.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.learn import chains
from diva_engine.demo import tiles
from diva_engine.demo.questions import Question
from diva_engine.records import Problem

NUM_TRAIN = 96
NUM_HELD_OUT = 192  # about; every entry of the mixture has equally many
ANSWERS_PER_HELD_OUT = 2


@dataclass(frozen=True)
class Regime:
    """A start and a mixture of questions."""

    name: str
    base: str  # name of the base model
    levels: tuple[int, ...]  # the mixture, one entry a level
    hard: tuple[int, ...]  # levels whose accuracy is HARD
    held_out_levels: tuple[int, ...] = ()  # the held-out mixture where it is another
    family: str = "tiles"  # of the questions: a name of FAMILIES

    @property
    def asked_levels(self) -> tuple[int, ...]:
        return self.held_out_levels or self.levels


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("ladder", "ladder", levels=(1, 2, 3, 4, 5, 6), hard=(5, 6)),
        Regime("gap", "gap", levels=(1, 2, 3, 7, 7, 7), hard=(7,)),
        Regime("saturated", "saturated", levels=(1, 1, 2, 2, 2, 3, 3, 4, 5, 6), hard=(4, 5, 6)),
        # Level 6 is never trained: how far does what is learned at 4 and 5 reach?
        Regime("untrained", "ladder", levels=(1, 2, 3, 4, 5), hard=(6,), held_out_levels=(1, 2, 3, 4, 5, 6)),
        # Another family of questions: text alone, from a public package.
        Regime("chains", "chains", levels=(2, 3, 4, 5, 6, 7), hard=(6, 7), family="chains"),
    )
}


def train_problems(regime: Regime, seed: int, count: int = NUM_TRAIN) -> list[Problem]:
    """The training questions of a seed, drawn anew for each, the mixture's levels in turn."""
    draw = random.Random(f"{regime.name} train {seed}")
    levels = [regime.levels[i % len(regime.levels)] for i in range(count)]
    return _problems(regime, f"{regime.name}-{seed}", levels, draw)


def held_out_problems(regime: Regime) -> list[Problem]:
    """The held-out questions: the same for every method and seed, equally many of every entry of the mixture."""
    draw = random.Random(f"{regime.name} held out")
    levels = [level for level in regime.asked_levels for _ in range(NUM_HELD_OUT // len(regime.asked_levels))]
    return _problems(regime, f"{regime.name}-held-out", levels, draw, is_held_out=True)


def _problems(
    regime: Regime, name: str, levels: Sequence[int], draw: random.Random, is_held_out: bool = False
) -> list[Problem]:
    draw_problem = FAMILIES[regime.family]
    return [draw_problem(level, draw, f"{name}-{i}", is_held_out) for i, level in enumerate(levels)]


def draw_tiles(level: int, draw: random.Random, id: str, is_held_out: bool) -> Problem:
    """Tiles are held out by being drawn with another seed: no picture comes twice."""
    return to_problem(tiles.draw_question(level, draw, id))


def draw_chain(level: int, draw: random.Random, id: str, is_held_out: bool) -> Problem:
    return chains.to_problem(chains.draw_chain(level, draw, is_held_out), id)


FAMILIES = {"tiles": draw_tiles, "chains": draw_chain}


def to_problem(question: Question) -> Problem:
    """The question as the trainer reads it. Its level is not told to the methods: they find difficulties themselves."""
    encoded = io.BytesIO()
    question.image.save(encoded, "PNG")
    return Problem(
        id=question.id,
        text=question.problem,
        answer=question.answer,
        images=(encoded.getvalue(),),
        paraphrases=question.paraphrases,
        steps=question.steps,
        extra={"level": question.level, "solution": question.solution},
    )
