"""A stage's answers scored while later ones are still generated.

The engine hands over each group of answers as it ends; a thread scores all that waits, in one call, while the engine
goes on. What is left when generation ends, and everything where the reward wants all answers together, is scored then.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from diva_engine.records import Problem, RewardFunction, Rollout, Score

# What a reward reads of a job's answers, and what it said of them, by the job's number.
Scored = dict[int, tuple[list[tuple[str, int]], tuple[Score, ...]]]


class Scoring:
    """Scores the answers to one stage's jobs; `problems[j]` is what job j asks.

    `scored` holds what is known already, and what will be: an engine that was started anew gives the same answers,
    which are then not scored again. The block's end waits for the call under way, at most the reward's own limit.
    """

    def __init__(self, reward: RewardFunction, problems: Sequence[Problem], scored: Scored | None = None) -> None:
        self._reward, self._problems = reward, problems
        self._scored: Scored = {} if scored is None else scored
        self._waiting: dict[int, Sequence[Rollout]] = {}
        self._changed = threading.Condition()
        self._is_over = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end_thread()

    def take(self, job: int, rollouts: Sequence[Rollout]) -> None:
        """All answers to job number `job`, to be scored meanwhile. Errors wait for `finish`: raised here, they would
        be taken for the engine's."""
        with self._changed:
            self._waiting[job] = rollouts
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
            self._thread.start()

    def finish(self, rollouts: Sequence[Sequence[Rollout]]) -> list[tuple[Score, ...]]:
        """The scores of all jobs' answers, in order. Raises what scoring met first, meanwhile or now."""
        self._end_thread()
        if self._error is not None:
            raise self._error
        self._score(dict(enumerate(rollouts)))
        return [self._scored[job][1] if group else () for job, group in enumerate(rollouts)]

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._is_over)
                    if self._is_over:
                        return
                    groups, self._waiting = self._waiting, {}
                self._score(groups)
        except BaseException as error:
            self._error = error

    def _score(self, groups: Mapping[int, Sequence[Rollout]]) -> None:
        """One call for all answers of these jobs that are not scored yet, in the order of the jobs."""
        answers = {job: [(rollout.text, len(rollout.token_ids)) for rollout in groups[job]] for job in sorted(groups)}
        new = {
            job: own for job, own in answers.items() if own and (job not in self._scored or self._scored[job][0] != own)
        }
        if not new:
            return
        texts, lengths = zip(*(answer for own in new.values() for answer in own), strict=True)
        problems = [self._problems[job] for job, own in new.items() for _ in own]
        scores = iter(self._reward(texts, problems, lengths))
        for job, own in new.items():
            self._scored[job] = own, tuple(next(scores) for _ in own)

    def _end_thread(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
