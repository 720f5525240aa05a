"""Which questions a step poses: an order per epoch that depends on (seed, epoch) alone, and a cursor to be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diva_engine.records import UserError
from diva_engine.seeds import derive_seed


def question_order(num_questions: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The permutation [num_questions] of an epoch.

    Sorts raw Philox words: NumPy promises that its bit generators never change, but not so for `permutation`.
    """
    words = np.random.Philox(key=derive_seed("question order", seed, epoch)).random_raw(num_questions)
    return np.argsort(words, kind="stable")


class QuestionSampler:
    """Draws the questions of each step without replacement within an epoch.

    Fewer questions than a step needs at the end of an epoch are left out, so that no step meets a question twice.
    """

    def __init__(self, num_questions: int, batch_size: int, *, seed: int, shuffle: bool = True) -> None:
        """Raises UserError where one step would need more questions than there are."""
        if batch_size > num_questions:
            raise UserError(
                f"a step poses {batch_size} questions, the data have {num_questions}; "
                f"set data.rollout_batch_size={num_questions} or less"
            )
        self.num_questions = num_questions
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0
        self._order = self._order_of_epoch()
        self._met: set[int] = set()  # this step's questions

    @property
    def steps_per_epoch(self) -> int:
        return self.num_questions // self.batch_size

    def next_batch(self) -> list[int]:
        """The indices of the next step's questions, [batch_size]."""
        if self.position + self.batch_size > self.num_questions:
            self.epoch += 1
            self.position = 0
            self._order = self._order_of_epoch()
        drawn = [int(index) for index in self._order[self.position : self.position + self.batch_size]]
        self.position += self.batch_size
        self._met = set(drawn)
        return drawn

    def draw_more(self, count: int) -> list[int]:
        """Up to `count` further questions for the step, none that it has met; fewer where the data have no others.

        Goes on in the epoch's order and into the next epoch's, in which questions that the step has met are passed
        over.
        """
        drawn: list[int] = []
        while len(drawn) < count and len(self._met) < self.num_questions:
            if self.position == self.num_questions:
                self.epoch += 1
                self.position = 0
                self._order = self._order_of_epoch()
            index = int(self._order[self.position])
            self.position += 1
            if index not in self._met:
                drawn.append(index)
                self._met.add(index)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_questions": self.num_questions,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the saved sampler stood. Raises UserError where the data or the seed are others."""
        settings = {"num_questions": "data.train_files", "seed": "data.seed", "shuffle": "data.shuffle"}
        for name, setting in settings.items():
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the checkpoint was made with {name}={state[name]}, this run has {getattr(self, name)}; "
                    f"restore {setting} or start anew"
                )
        self.epoch = int(state["epoch"])
        self.position = int(state["position"])
        self._order = self._order_of_epoch()

    def _order_of_epoch(self) -> npt.NDArray[np.int64]:
        if self.shuffle:
            return question_order(self.num_questions, self.seed, self.epoch)
        return np.arange(self.num_questions)
