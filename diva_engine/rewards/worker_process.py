"""One worker process as the pool sees it: started, asked, heard without waiting, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

WORKER_FILE = Path(__file__).with_name("worker.py")
START_LIMIT_S = 120.0  # importing what a reward file imports, on a busy machine
MAX_REPLY_BYTES = 64 << 20
RECEIVE_BYTES = 1 << 20
SEND_LIMIT_S = 5.0  # a worker that is ready reads at once
END_LIMIT_S = 5.0


class Worker:
    """One process and the socket to it. Made starting; ready once it says so."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.socket, theirs = socket.socketpair()
        self.is_apart = False  # behind process numbers of its own (worker.py)
        self._received = b""
        self._number = 0  # of the task it was asked last
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER_FILE), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2 if settings["load"][0] == "file" else subprocess.DEVNULL,  # what a reward file prints
                stderr=None if settings["load"][0] == "file" else subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                start_new_session=True,  # Ctrl-C is the trainer's business, which ends its workers itself
            )
        with suppress(OSError):  # one that is dead already says so by its silence
            self._send(settings, SEND_LIMIT_S)
        self.is_ready = False
        self.task: int | None = None
        self.deadline = time.monotonic() + START_LIMIT_S

    def send(self, number: int, task: Any, deadline: float) -> None:
        """OSError where the worker is dead, or does not read."""
        self._number += 1
        self._send([self._number, task], min(SEND_LIMIT_S, max(0.1, deadline - time.monotonic())))
        self.task, self.deadline = number, deadline

    def _send(self, message: Any, limit_s: float) -> None:
        self.socket.settimeout(limit_s)
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | Literal["part"] | None:
        """The next message; "part" where more of it is to come; None where the worker has died or sent none.

        Never waits: a worker may stop in the middle of a message.
        """
        self.socket.settimeout(0.0)
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return "part"
        except OSError:
            return None
        self._received += data
        line, end, _ = self._received.partition(b"\n")
        if not end:
            return "part" if data and len(line) <= MAX_REPLY_BYTES else None
        self._received = b""  # the worker was asked once: what follows its answer is nobody's
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def answers(self, message: dict[str, Any]) -> bool:
        """Whether it is about the task asked last: what a reward file writes itself must not shift the others'."""
        return message.get("number") == self._number

    def death(self) -> str:
        """How a worker that went silent, or said what it was not asked, has ended, in words."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "its worker process closed its connection"
        return f"its worker process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def kill(self) -> None:
        """End the process and all it has started.

        One that is apart is asked first: its outermost process runs nothing of the user's, ends the rest and buries it.
        """
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self.is_apart:
                self.process.terminate()
                self.process.wait(timeout=END_LIMIT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel must not hang the trainer
            self.process.wait(timeout=END_LIMIT_S)
        self.socket.close()
