"""How far a long pass over questions is, and how long it will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diva_engine.trainer.console import duration

PLAIN_LINES = 10  # at most so many lines where standard error is no terminal


@contextlib.contextmanager
def progress_over(total: int, label: str, terminal: Terminal | None = None) -> Iterator[Callable[[int], None]]:
    """Gives the function to call with the number of questions done since the last call.

    A bar on a terminal, a few plain lines elsewhere; both on standard error, both with the time left.
    """
    terminal = terminal or Terminal(stderr=True)
    if not terminal.is_terminal:
        yield _PlainProgress(total, label, terminal).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


class _PlainProgress:
    def __init__(self, total: int, label: str, terminal: Terminal) -> None:
        self._total = total
        self._label = label
        self._terminal = terminal
        self._done = 0
        self._next_line = 0.0
        self._began = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if self._done < self._next_line and self._done < self._total:
            return
        self._next_line = self._done + self._total / PLAIN_LINES
        left = (time.monotonic() - self._began) / max(1, self._done) * (self._total - self._done)
        line = f"{self._label}: {self._done}/{self._total} questions, {duration(left)} left"
        self._terminal.print(line, markup=False, highlight=False, soft_wrap=True)
