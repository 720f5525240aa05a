"""All questions past the server, N at a time: what is asked, asked again, and written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from diva_engine.augmentation.checks import Judged, Rejected, SameAnswer, judge_paraphrases, judge_steps
from diva_engine.augmentation.client import ChatClient, Reply, RequestFailed, ServerRefused
from diva_engine.augmentation.journal import Journal, Outcome
from diva_engine.augmentation.prompts import Kind, messages_for
from diva_engine.records import Problem, UserError

FAILURES_IN_A_ROW = 20  # with no success between them: the server is gone, not a question


@dataclass(frozen=True)
class Job:
    """One question and what is wanted for it."""

    row: int  # of the input file
    index: int  # of the question
    kind: Kind
    digest: str  # of the question and its answer as they stand in the file


@dataclass(frozen=True)
class Posed:
    """A question as it is sent. Made when its turn comes: images are large."""

    problem: Problem
    images: tuple[str, ...]  # URIs


@dataclass(frozen=True)
class Wishes:
    """How the questions are asked."""

    num_paraphrases: int = 3
    tries: int = 2  # requests a question, where replies are rejected
    concurrency: int = 16


class Asker:
    """Asks the server for every job and journals what comes of it.

    Args:
        pose: reads a job's question and encodes its images; called in one thread of its own.
        same_answer: whether a worked solution's answer is the reference's.
        on_outcome: called after each outcome is on the disk.
    """

    def __init__(
        self,
        client: ChatClient,
        journal: Journal,
        wishes: Wishes,
        *,
        pose: Callable[[Job], Posed],
        same_answer: SameAnswer,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self._client = client
        self._journal = journal
        self._wishes = wishes
        self._pose = pose
        self._same_answer = same_answer
        self._on_outcome = on_outcome
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._failures_in_a_row = 0

    async def ask_all(self, jobs: Iterable[Job]) -> None:
        """Raises UserError where no request can succeed any more; what was done before stands in the journal."""
        queue = iter(jobs)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._wishes.concurrency):
                    workers.create_task(self._work(queue))
        except* (UserError, ServerRefused) as group:
            raise UserError(str(group.exceptions[0])) from None
        finally:
            self._reader.shutdown(wait=False, cancel_futures=True)

    async def _work(self, queue: Iterator[Job]) -> None:
        for job in queue:
            outcome = await self._outcome_of(job)
            self._journal.append(outcome)
            self._on_outcome(outcome)
            self._stop_where_nothing_succeeds(outcome)

    def _stop_where_nothing_succeeds(self, outcome: Outcome) -> None:
        self._failures_in_a_row = self._failures_in_a_row + 1 if outcome.failed else 0
        if self._failures_in_a_row >= max(FAILURES_IN_A_ROW, 2 * self._wishes.concurrency):
            raise UserError(
                f"{self._failures_in_a_row} questions failed one after the other; the last: {outcome.failed}"
            )

    async def _outcome_of(self, job: Job) -> Outcome:
        loop = asyncio.get_running_loop()
        try:
            posed = await loop.run_in_executor(self._reader, self._pose, job)
        except UserError as error:  # an image that cannot be decoded
            return Outcome(job.row, job.kind, job.digest, failed=str(error))
        conversation = _Conversation(posed, job.kind, self._wishes, self._same_answer)
        failed = ""
        try:
            while conversation.wants_more:
                messages = messages_for(job.kind, posed.problem, posed.images, conversation.num_missing)
                conversation.take(await self._client.ask(messages))
        except RequestFailed as error:
            failed = "" if conversation.accepted else str(error)
        return conversation.outcome(job, failed)


class _Conversation:
    """The replies to one question: what they gave, and whether to ask once more."""

    def __init__(self, posed: Posed, kind: Kind, wishes: Wishes, same_answer: SameAnswer) -> None:
        self._problem = posed.problem
        self._kind = kind
        self._wishes = wishes
        self._same_answer = same_answer
        self._replies: list[Reply] = []
        self._rejected: list[Rejected] = []
        self.accepted: list[str] = []

    @property
    def num_missing(self) -> int:
        """Texts still wanted: paraphrases, or one whole solution."""
        if self._kind == "steps":
            return 0 if self.accepted else 1
        return max(0, self._wishes.num_paraphrases - len(self.accepted))

    @property
    def wants_more(self) -> bool:
        return self.num_missing > 0 and len(self._replies) < self._wishes.tries

    def take(self, reply: Reply) -> None:
        judged = self._judge(reply)
        self._replies.append(reply)
        self.accepted += judged.accepted if self._kind == "steps" else judged.accepted[: self.num_missing]
        self._rejected += judged.rejected

    def _judge(self, reply: Reply) -> Judged:
        if self._kind == "paraphrases":
            return judge_paraphrases(self._problem, reply.text, reply.is_cut_off, self.accepted)
        return judge_steps(self._problem, reply.text, reply.is_cut_off, self._same_answer)

    def outcome(self, job: Job, failed: str) -> Outcome:
        return Outcome(
            row=job.row,
            kind=job.kind,
            digest=job.digest,
            accepted=tuple(self.accepted),
            rejected=tuple(self._rejected),
            failed=failed,
            requests=len(self._replies),
            prompt_tokens=_sum(reply.prompt_tokens for reply in self._replies),
            completion_tokens=_sum(reply.completion_tokens for reply in self._replies),
            uncounted=sum(None in (reply.prompt_tokens, reply.completion_tokens) for reply in self._replies),
        )


def digest_of(text: Any, answer: Any) -> str:
    """Tells a question with its answer from another, by the file's cells: an outcome belongs to exactly one."""
    return blake2b(repr((text, answer)).encode(errors="replace"), digest_size=12).hexdigest()


def done_outcomes(outcomes: Iterable[Outcome]) -> dict[tuple[int, Kind], Outcome]:
    """The outcomes that need no further asking, by row and kind."""
    return {(outcome.row, outcome.kind): outcome for outcome in outcomes if not outcome.failed}


def _sum(counts: Iterable[int | None]) -> int:
    return sum(count or 0 for count in counts)
