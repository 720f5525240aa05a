"""Sums and differences in words: the task chain_sum of the public package reasoning-gym, as text without a picture.

A question of level n has n one-digit terms: "State the final answer to the following arithmetic problem: 4 + 3 - 2 =".
Its worked steps are the running totals, "4 + 3 = 7 ;", "- 2 = 5 ;". Of what the package draws, those chains are kept
whose running totals lie within `TOTALS`: the small model then meets each sum of two numbers often enough to learn it.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from diva_engine.demo.lessons import Lesson
from diva_engine.demo.vocabulary import ANSWER_MARKS, ROLES, SPECIAL_TOKENS, UNKNOWN, WORD_PATTERN
from diva_engine.records import Problem, UserError

TASK = "chain_sum"
TOTALS = range(31)
HELD_OUT_IN = 4  # one chain of so many, whichever its level, is for held-out questions only

# The first wording is the package's own, the others are its paraphrases.
WORDINGS = (
    "State the final answer to the following arithmetic problem: {chain} =",
    "What is {chain} ?",
    "Compute {chain} .",
    "Work out the sum {chain} and state the total.",
)


@dataclass(frozen=True)
class Chain:
    """One question."""

    expression: str  # as the package writes it: "4 + 3 - 2"

    @property
    def level(self) -> int:
        return len(self.expression.split()[::2])

    @property
    def totals(self) -> list[int]:
        """After each term, the first one included."""
        first, *rest = self.expression.split()
        signed = (int(sign + term) for sign, term in zip(rest[::2], rest[1::2], strict=True))
        return list(accumulate(signed, initial=int(first)))

    @property
    def steps(self) -> tuple[str, ...]:
        """The worked steps, one a sign: "4 + 3 = 7 ;", "- 2 = 5 ;"."""
        first, *rest = self.expression.split()
        parts = zip([f"{first} ", *[""] * self.level], rest[::2], rest[1::2], self.totals[1:], strict=False)
        return tuple(f"{opening}{sign} {term} = {total} ;" for opening, sign, term, total in parts)

    @property
    def answer(self) -> str:
        return str(self.totals[-1])

    @property
    def solution(self) -> str:
        """The whole answer a model is taught to give."""
        return f"<think> {' '.join(self.steps)} </think> \\boxed{{ {self.answer} }}"

    @property
    def wordings(self) -> list[str]:
        return [wording.format(chain=self.expression) for wording in WORDINGS]

    @property
    def is_held_out(self) -> bool:
        """By the expression alone, so that no question of training or of the warm-up is ever a held-out one."""
        return zlib.crc32(self.expression.encode()) % HELD_OUT_IN == 0

    def first(self, num_terms: int) -> Chain:
        """Its first terms alone."""
        return Chain(" ".join(self.expression.split()[: 2 * num_terms - 1]))


def draw_chain(level: int, draw: random.Random, is_held_out: bool = False) -> Chain:
    """A chain of that level from reasoning-gym, held out or not.

    Raises UserError where the package is not installed.
    """
    try:
        from reasoning_gym.factory import create_dataset
    except ImportError as error:
        raise UserError("chains are drawn by reasoning-gym; install it: pip install reasoning-gym") from error
    while True:
        settings = {"min_terms": level, "max_terms": level, "min_digits": 1, "max_digits": 1}
        # A data set of one: the package's own seeds count on from one entry to the next, so data sets overlap.
        entry = create_dataset(TASK, size=1, seed=draw.getrandbits(48), **settings)[0]
        chain = Chain(entry["metadata"]["expression"])
        if chain.is_held_out == is_held_out and all(total in TOTALS for total in chain.totals):
            return chain


def to_problem(chain: Chain, id: str) -> Problem:
    """The chain as the trainer reads it."""
    text, *paraphrases = chain.wordings
    return Problem(
        id=id,
        text=text,
        answer=chain.answer,
        images=(),
        paraphrases=tuple(paraphrases),
        steps=chain.steps,
        extra={"level": chain.level, "solution": chain.solution},
    )


@dataclass(frozen=True)
class ChainLessons:
    """How often each kind of lesson comes: whole answers, and answers that were begun for the model."""

    levels: Mapping[int, float]  # weight of each level among the whole answers
    begun: float = 0.0  # share of the answers that are begun with all steps but the last
    begun_levels: Mapping[int, float] = field(default_factory=dict)
    longest: int = 0  # terms after which a whole answer stops, finished or not; 0: no bound
    noise: float = 0.0  # chance that a taught total is any number
    patience: float = 0.0  # chance that the teacher goes on after all, for every term from `longest` on

    def draw(self, rng: random.Random) -> Lesson:
        is_begun = rng.random() < self.begun
        weights = self.begun_levels if is_begun else self.levels
        chain = draw_chain(rng.choices(list(weights), list(weights.values()))[0], rng)
        text, begun, taught = rng.choice(chain.wordings), "", chain
        if is_begun:
            begun = "<think> " + " ".join(chain.steps[:-1])
        elif self.longest:
            stop = self.longest
            while stop < chain.level and rng.random() < self.patience:
                stop += 1
            taught = chain.first(stop)
        answer = _with_errors(taught, self.noise, rng) if self.noise and not is_begun else taught.solution
        return Lesson(text, answer.removeprefix(begun).lstrip(), image=None, shown=(), begun=begun)


def _with_errors(chain: Chain, noise: float, rng: random.Random) -> str:
    """The answer of a teacher who sometimes misreckons, and goes on from the wrong total as far as `TOTALS` reach."""
    steps, total, error = [], chain.totals[0], 0
    for step, right in zip(chain.steps, chain.totals[1:], strict=True):
        if rng.random() < noise:
            error = rng.choice(TOTALS) - right
        total = min(max(right + error, TOTALS[0]), TOTALS[-1])
        steps.append(re.sub(r"\d+(?= ;)", str(total), step))
    return f"<think> {' '.join(steps)} </think> \\boxed{{ {total} }}"


def vocabulary() -> list[str]:
    """Every token of the chains' model, the position being the token id; it reads and writes nothing else."""
    words = dict.fromkeys([*SPECIAL_TOKENS, UNKNOWN])
    for text in _texts():
        words.update(dict.fromkeys(re.findall(WORD_PATTERN, text.lower())))
    return list(words)


def _texts() -> Iterator[str]:
    yield from (ROLES, ANSWER_MARKS)
    yield from (wording.format(chain="") for wording in WORDINGS)
    yield " ".join(map(str, TOTALS))
