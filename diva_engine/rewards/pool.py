"""Worker processes with a hard wall-clock limit: nothing that runs in them can stop or stall the trainer."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal

from diva_engine.records import UserError
from diva_engine.rewards.worker_process import START_LIMIT_S, Worker

MAX_FAILED_STARTS = 3


class RewardError(UserError):
    """A reward could not be computed. The message names the function, the item and the mend."""


@dataclass(frozen=True)
class Outcome:
    """What became of one task."""

    value: Any = None
    failure: Literal["", "raised", "timeout", "died"] = ""
    detail: str = ""


@dataclass
class _Call:
    """The state of one `run`."""

    tasks: Sequence[Any]
    outcomes: list[Outcome | None]
    waiting: deque[int]
    deadline: float = float("inf")  # set when the first worker is ready
    starts_left: int = 0
    done: int = 0

    def finish(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        self.done += 1


@dataclass
class WorkerPool:
    """Runs tasks in worker processes; keeps their order; never waits longer than its limits.

    `load` is what a worker loads (worker.py). A task that takes longer than `time_limit_s` loses its worker, which is
    killed and started anew; tasks not finished `batch_time_limit_s` after the call began come back as timed out.
    `memory_limit_mb` is a worker's whole address space (0: no limit). Workers start with the first call.
    """

    load: Sequence[Any]
    time_limit_s: float = 5.0
    batch_time_limit_s: float = 30.0
    num_workers: int = 2
    memory_limit_mb: int = 4096
    name: str = "the answer checker"
    interface: str = ""  # what the workers say they have loaded
    _failed_starts: int = 0  # in a row
    _workers: list[Worker] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._settings = {
            "memory_limit_mb": self.memory_limit_mb,
            "time_limit_s": self.time_limit_s,
            "sys_path": [path or os.getcwd() for path in sys.path],
            "load": list(self.load),
        }
        # Also at interpreter exit. A forked child must leave its parent's workers alone.
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())

    def start(self) -> str:
        """Start one worker and wait until it is ready; RewardError where it cannot. Returns `interface`."""
        with self._lock:
            if not any(worker.is_ready for worker in self._workers):
                self._begin(_Call((), [], deque(), starts_left=1), 1)
        return self.interface

    def run(self, tasks: Sequence[Any]) -> list[Outcome]:
        """Run JSON tasks, in parallel. One outcome a task, in their order; RewardError if no worker can start."""
        if not tasks:
            return []
        with self._lock:
            call = _Call(tasks, [None] * len(tasks), deque(range(len(tasks))))
            call.starts_left = len(tasks) + 2 * self.num_workers
            try:
                self._run(call)
            except BaseException:  # Ctrl-C in the middle: a worker may still be busy with this call's task
                _kill_all(self._workers, os.getpid())
                raise
            unfinished = Outcome(failure="timeout", detail=f"no result within {self.batch_time_limit_s:g} s")
            return [outcome or unfinished for outcome in call.outcomes]

    def close(self) -> None:
        """End all workers. A later call starts them again."""
        with self._lock:
            _kill_all(self._workers, os.getpid())

    def _run(self, call: _Call) -> None:
        self._begin(call, min(self.num_workers, len(call.tasks)))
        call.deadline = time.monotonic() + self.batch_time_limit_s
        while call.done < len(call.tasks):
            self._assign(call)
            now = time.monotonic()
            if now >= call.deadline:
                break
            self._wait(call, max(0.0, min([call.deadline, *(w.deadline for w in self._busy())]) - now))
            self._end_overdue(call)
        for worker in self._busy():
            if worker.task is not None:
                self._discard(worker)

    def _begin(self, call: _Call, wanted: int) -> None:
        """Have `wanted` workers under way and at least one of them ready."""
        self._wait(call, 0.0)  # notices workers that have died since the last call
        while True:
            while len(self._workers) < wanted:
                self._workers.append(Worker(self._settings))
            if any(worker.is_ready for worker in self._workers):
                return
            self._wait(call, 1.0)
            self._end_overdue(call)

    def _busy(self) -> Iterable[Worker]:
        return [worker for worker in self._workers if worker.task is not None or not worker.is_ready]

    def _assign(self, call: _Call) -> None:
        """Give every idle worker a task; start workers for those that were lost."""
        free = sum(worker.task is None for worker in self._workers)
        missing = min(self.num_workers - len(self._workers), len(call.waiting) - free, call.starts_left)
        for _ in range(missing):
            call.starts_left -= 1
            self._workers.append(Worker(self._settings))
        for worker in list(self._workers):
            if not call.waiting:
                return
            if worker.is_ready and worker.task is None:
                number = call.waiting.popleft()
                try:
                    worker.send(number, call.tasks[number], time.monotonic() + self.time_limit_s)
                except OSError:  # it died while idle, or does not read: the task has not begun
                    self._discard(worker)
                    call.waiting.appendleft(number)
                    self._assign(call)
                    return

    def _wait(self, call: _Call, timeout_s: float) -> None:
        """Take in what workers say within `timeout_s`."""
        workers: dict[Any, Worker] = {worker.socket: worker for worker in self._workers}
        for connection in wait(list(workers), timeout_s):
            worker = workers[connection]
            message = worker.receive()
            if message == "part":
                continue
            if message is None:
                self._bury(call, worker)
            elif not worker.is_ready:
                self._greet(worker, message)
            elif worker.task is None or not worker.answers(message):
                self._bury(call, worker)
            else:
                failure: Literal["", "raised"] = "raised" if "error" in message else ""
                call.finish(worker.task, Outcome(message.get("value"), failure, str(message.get("error", ""))))
                worker.task = None

    def _bury(self, call: _Call, worker: Worker) -> None:
        limit = f"{self.memory_limit_mb} MB" if self.memory_limit_mb else "none"
        words = f"{worker.death()}; its memory limit (memory_limit_mb) is {limit}"
        self._discard(worker)
        if not worker.is_ready:
            self._count_failed_start(words)
        if worker.task is not None:
            call.finish(worker.task, Outcome(failure="died", detail=words))

    def _count_failed_start(self, words: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RewardError(f"{self.name} cannot be loaded: {words}")

    def _greet(self, worker: Worker, message: dict[str, Any]) -> None:
        if "ready" not in message:
            self._discard(worker)
            raise RewardError(f"{self.name} cannot be loaded: {message.get('error', 'no reason given')}")
        worker.is_ready = True
        worker.is_apart = message.get("is_apart") is True
        self._failed_starts = 0
        self.interface = str(message["ready"])

    def _end_overdue(self, call: _Call) -> None:
        now = time.monotonic()
        for worker in self._busy():
            if now >= worker.deadline:
                number = worker.task
                self._discard(worker)
                if not worker.is_ready:
                    self._count_failed_start(f"it did not start within {START_LIMIT_S:g} s")
                if number is not None:
                    call.finish(number, Outcome(failure="timeout", detail=f"no result within {self.time_limit_s:g} s"))

    def _discard(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


def _kill_all(workers: list[Worker], owner_pid: int) -> None:
    if os.getpid() == owner_pid:
        while workers:
            workers.pop().kill()
