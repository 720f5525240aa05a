"""SIGTERM and SIGINT: the first asks the run to stop where nothing is lost, the second ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diva_engine.distributed import is_launched

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
AT_ONCE = 137  # the exit code of a second signal: as if killed, nothing saved
# Ctrl-C reaches a rank twice, from the terminal and from torchrun, which passes it on: that is one wish, not two.
TORCHRUN_ECHO_S = 5.0


class StopAsked(Exception):
    """A signal has come and the run is at a place where it can stop; the loop turns it into `Stopped`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stopped(Exception):
    """The run was stopped by a signal, with a checkpoint of its last finished step at `place`."""

    def __init__(self, number: int, step: int, place: str, run_dir: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; {place} holds the run")
        self.run_dir = run_dir
        self.exit_code = 128 + number  # a shell's code for a process that the signal ended


class StopRequest:
    """The signal that asked for the run's end; `number` is 0 until one does."""

    def __init__(self) -> None:
        self.number = 0
        self._came = 0.0
        self._echo_s = TORCHRUN_ECHO_S if is_launched() else 0.0

    def take(self, number: int) -> None:
        if not self.number:
            self.number, self._came = number, time.monotonic()
            again = f"once more after {self._echo_s:g} s" if self._echo_s else "once more"
            name = signal.Signals(number).name
            print(f"{name}: stopping after this phase, with a checkpoint; {again} to stop at once", file=sys.stderr)
        elif time.monotonic() - self._came >= self._echo_s:
            os._exit(AT_ONCE)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Takes SIGTERM and SIGINT while the block runs."""
    request = StopRequest()
    with read_signals(STOP_SIGNALS, request.take):
        yield request


@contextmanager
def read_signals(numbers: Sequence[int], take: Callable[[int], None]) -> Iterator[None]:
    """`take` is called with each signal that comes while the block runs, unless a block within reads it; a signal that
    was ignored before (nohup) stays so.

    They are read by a thread: Python's own handlers wait for the main thread, which may be stuck in a collective call
    that never ends, and then a signal must still be heard.
    """
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread() or not wanted:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    listener = threading.Thread(target=_listen, args=(reader, wanted, take), name="signals", daemon=True)
    listener.start()
    before = {number: signal.signal(number, lambda *_: None) for number in wanted}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()


def _listen(reader: socket.socket, wanted: Sequence[int], take: Callable[[int], None]) -> None:
    while numbers := reader.recv(64):
        for number in numbers:  # other signals with a Python handler come here too
            if number in wanted:
                take(number)
