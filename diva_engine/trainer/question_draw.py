"""Which questions a step poses: the sampler's, but for those that rest because they were solved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.data.sampler import QuestionSampler
from diva_engine.records import Problem


class Questions(Protocol):
    """Training questions: reading one may cost a look at the disk, its id does not."""

    @property
    def ids(self) -> Sequence[str]: ...

    def __getitem__(self, index: int, /) -> Problem: ...


@dataclass(frozen=True)
class QuestionDraw:
    """Draws from the sampler and passes over questions whose rest lasts (`difficulty.rest_solved`).

    Where fewer are awake than a step wants, resting ones fill it up, first met first posed: a step is never short
    while there are questions.
    """

    questions: Questions
    sampler: QuestionSampler
    ledger: DifficultyLedger

    def next_step(self) -> list[Problem]:
        """The next step's questions."""
        return self._take(self.sampler.next_batch(), self.sampler.batch_size)

    def more(self, count: int) -> list[Problem]:
        """Up to `count` further questions for the step, none that it has met."""
        return self._take([], count)

    def peek(self) -> Iterator[Problem]:
        """What `next_step` would return now. Nothing moves."""
        sampler = copy.copy(self.sampler)
        return map(self.questions.__getitem__, self._chosen(sampler, sampler.next_batch(), sampler.batch_size)[0])

    def _take(self, drawn: list[int], count: int) -> list[Problem]:
        chosen, passed = self._chosen(self.sampler, drawn, count)
        self.ledger.pass_over([self.questions.ids[index] for index in passed])
        return [self.questions[index] for index in chosen]

    def _chosen(self, sampler: QuestionSampler, drawn: list[int], count: int) -> tuple[list[int], list[int]]:
        """The step's questions, and those that the sampler named and that were passed over."""
        awake: list[int] = []
        resting: list[int] = []
        while True:
            for index in drawn:
                (resting if self.ledger.rests(self.questions.ids[index]) else awake).append(index)
            drawn = sampler.draw_more(count - len(awake))
            if not drawn:
                break
        woken = count - len(awake)
        return awake + resting[:woken], resting[woken:]
