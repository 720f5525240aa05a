"""Says where the run stands when a phase takes longer than its bound: the stacks of all threads."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from diva_engine.trainer.console import duration

STALLED_EXIT_CODE = 75  # EX_TEMPFAIL: going on from the last checkpoint may well work


class Watchdog:
    """Looks at the phase under way; one longer than `limit_s` has its stacks written to the file and to stderr.

    It reports again whenever the phase's time has doubled. With `stops` the process ends after the report, with
    STALLED_EXIT_CODE. A phase that holds the interpreter's lock, so that no thread can look, is reported by the
    operating system's thread of faulthandler, which needs no lock.
    """

    def __init__(self, path: Path, limit_s: float, *, stops: bool = False, tell: Callable[[str], None] = print) -> None:
        self.path, self.limit_s, self._stops, self._tell = path, limit_s, stops, tell
        self._next_report_s = limit_s
        self._file: TextIO | None = None

    def look(self, phase: str, in_phase_s: float) -> None:
        """Called every few seconds with the phase under way and its time."""
        self._arm()
        if in_phase_s < self.limit_s:
            self._next_report_s = self.limit_s
        elif in_phase_s >= self._next_report_s:
            self._next_report_s = 2 * in_phase_s
            self._report(phase, in_phase_s)

    def close(self) -> None:
        """Without a report no file is left."""
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._file = None
        with suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def _arm(self) -> None:
        """Unless this is called again within the limit, which it cannot be under a held lock, stacks are written."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        faulthandler.dump_traceback_later(self.limit_s, file=self._file, exit=self._stops)

    def _report(self, phase: str, in_phase_s: float) -> None:
        head = f"{phase} has taken {duration(in_phase_s)}, longer than trainer.phase_limit_s={self.limit_s:g}"
        self._tell(f"{head}; the stacks of all threads are in {self.path}")
        for file in (self._file, sys.__stderr__):
            with suppress(OSError, ValueError):  # a stderr that is closed, or no file of the system's
                if file is not None:
                    file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {head}\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)
        if self._stops:
            self._tell("the run ends (trainer.on_phase_limit=stop); trainer.load_checkpoint_path=latest goes on")
            os._exit(STALLED_EXIT_CODE)
