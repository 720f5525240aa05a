"""One rank lost: the others stop within `trainer.rank_timeout_s` and name it, instead of waiting for it for ever.

Every rank counts up in the store where the ranks have met, and looks whether the others' counts still move.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from diva_engine.distributed import World, current_world
from diva_engine.records import UserError
from diva_engine.trainer.engine_restart import describe_error
from diva_engine.trainer.signals import AT_ONCE, read_signals

RANK_LOST_EXIT_CODE = 76
# Added to a count when its rank ends.
DONE, FAILED = 1 << 40, 1 << 41
SIGNALLED_KEY = "diva_engine/rank_watch/signalled"  # how many ranks SIGTERM has reached outside of the loop
TRANSPORTS = ("gloo", "nccl")  # a refusal may quote one too: a checkpoint that a lost rank left unwritten
LOST_CONTACT = (*TRANSPORTS, "closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "connection")
GO_ON = "trainer.load_checkpoint_path=latest goes on from the last checkpoint"


@contextmanager
def watched_ranks(timeout_s: float) -> Iterator[None]:
    """While the block runs, a rank that is lost or fails alone ends this process too, with RANK_LOST_EXIT_CODE and one
    line that names it. Nothing happens in a world of one rank, or with `timeout_s` 0."""
    world = current_world()
    if world.size == 1 or not timeout_s:
        yield
        return
    watch = RankWatch(world, _own_connection(timeout_s), timeout_s)
    watch.start()
    with read_signals([signal.SIGTERM], watch.take_signal):
        try:
            yield
        except Exception as error:
            is_refusal = isinstance(error, UserError)
            if any(words in str(error).lower() for words in (TRANSPORTS if is_refusal else LOST_CONTACT)):
                watch.end_if_lost()
            watch.leave(str(error) if is_refusal else describe_error(error))
            raise
        except BaseException as ending:  # Ctrl-C, or an exit
            watch.leave(type(ending).__name__)
            raise
        watch.leave()


class RankWatch:
    """Two threads: one talks to the store, which may block where its host is lost; the other judges and ends. Two more
    where SIGTERM comes."""

    def __init__(self, world: World, store: dist.Store, timeout_s: float) -> None:
        self._world, self._store, self._timeout_s = world, store, timeout_s
        self._interval_s = min(5.0, timeout_s / 6)
        now = time.monotonic()
        self._counts = dict.fromkeys(range(world.size), 0)
        self._moved = dict.fromkeys(range(world.size), now)  # when each rank's count was last seen to move
        self._contact = now  # when the store last answered
        self._ending = threading.Event()
        self._is_signalled = False
        self._last_words = threading.Lock()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._talk, self._judge)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def leave(self, failure: str = "") -> None:
        """This rank ends: well, or for this reason. The others learn it at their next look."""
        self._ending.set()
        with suppress(RuntimeError):  # a store that is gone: its host has ended already
            if failure:
                self._store.set(_words_key(self._world.rank), failure)
            self._store.add(_count_key(self._world.rank), FAILED if failure else DONE)
        for thread in self._threads:  # one that is inside the store while Python shuts down aborts the process
            thread.join(self._timeout_s)

    def end_if_lost(self) -> None:
        """A collective call has failed: waits until it is clear which rank is lost, and ends; returns if none is."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            self._end_on(self._lost(3 * self._interval_s))
            time.sleep(self._interval_s / 2)

    def take_signal(self, number: int) -> None:
        """SIGTERM where the loop does not read it: while the run loads, or after it has failed.

        torchrun sends it to all that one lost rank leaves, at once: that rank is named before this process ends. Where
        all ranks have it, or none is found lost, it ends by it. A second one ends it at once.
        """
        if self._is_signalled:
            os._exit(AT_ONCE)
        self._is_signalled = True
        for run in (self._end_if_all_are_signalled, self._end_by_signal):
            self._threads.append(threading.Thread(target=run, args=(number,), daemon=True))
            self._threads[-1].start()

    def _end_if_all_are_signalled(self, number: int) -> None:
        with suppress(RuntimeError):
            self._store.add(SIGNALLED_KEY, 1)
            while not self._ending.wait(0.1):
                if self._store.add(SIGNALLED_KEY, 0) == self._world.size:
                    time.sleep(0.5)  # for the others to see it too, where this process holds the store
                    os._exit(128 + number)

    def _end_by_signal(self, number: int) -> None:
        look_s = 3 * self._interval_s
        deadline = time.monotonic() + look_s + 2 * self._interval_s
        while not self._ending.wait(self._interval_s / 2):
            self._end_on(self._lost(look_s))
            if time.monotonic() > deadline:
                os._exit(128 + number)

    def _talk(self) -> None:
        while not self._ending.is_set():
            with suppress(RuntimeError):  # dist.DistError, also where the store's host has gone
                self._store.add(_count_key(self._world.rank), 1)
                for rank in self._counts:
                    count = self._store.add(_count_key(rank), 0)
                    if count != self._counts[rank]:
                        self._counts[rank], self._moved[rank] = count, time.monotonic()
                self._contact = time.monotonic()
            self._ending.wait(self._interval_s)

    def _judge(self) -> None:
        while not self._ending.wait(self._interval_s):
            self._end_on(self._lost(self._timeout_s))

    def _lost(self, limit_s: float) -> str:
        """Which rank is lost, and why, in one line; empty where none is."""
        now = time.monotonic()
        if now - self._contact > limit_s:
            return f"rank 0, or torchrun beside it, is lost: the ranks' store has not answered for {limit_s:g} s"
        for rank, moved in self._moved.items():
            if rank == self._world.rank or DONE <= self._counts[rank] < FAILED or now - moved <= limit_s:
                continue
            if self._counts[rank] >= FAILED:
                return f"rank {rank} failed: {self._words_of(rank)}"
            return f"rank {rank} is lost: it has given no sign for {now - moved:.0f} s"
        return ""

    def _words_of(self, rank: int) -> str:
        try:
            return self._store.get(_words_key(rank)).decode()
        except RuntimeError:
            return "its reason cannot be read"

    def _end_on(self, reason: str) -> None:
        if not reason or self._ending.is_set():
            return
        line = f"error: {reason} (trainer.rank_timeout_s={self._timeout_s:g}); rank {self._world.rank} stops. {GO_ON}"
        with self._last_words:  # of the threads that look, one speaks
            print(line, file=sys.stderr, flush=True)
            os._exit(RANK_LOST_EXIT_CODE)


def _own_connection(timeout_s: float) -> dist.Store:
    """A second way to the store of the ranks: the first may be waiting inside a collective call."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=max(1.0, timeout_s / 2)))


def _count_key(rank: int) -> str:
    return f"diva_engine/rank_watch/count/{rank}"


def _words_key(rank: int) -> str:
    return f"diva_engine/rank_watch/words/{rank}"
