"""How far the run is, how long it will take, and what it has cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diva_engine.augmentation.journal import Outcome
from diva_engine.augmentation.tally import Tally

PLAIN_LINES = 20  # at most so many lines where standard error is no terminal


@contextlib.contextmanager
def display_over(total: int, tally: Tally, console: Console | None = None) -> Iterator[Callable[[Outcome], None]]:
    """Gives the function to call with each outcome; it adds it to the tally.

    A bar on a terminal, a few plain lines elsewhere; both on standard error, with the time left and the cost so far.
    """
    console = console or Console(stderr=True)
    if not total:
        yield tally.add
        return
    if not console.is_terminal:
        yield _PlainDisplay(total, tally, console).show
        return
    columns = (
        *(TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[state]}")),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, state="")

        def show(outcome: Outcome) -> None:
            tally.add(outcome)
            bar.update(task, advance=1, state=_state(tally))

        yield show


class _PlainDisplay:
    def __init__(self, total: int, tally: Tally, console: Console) -> None:
        self._total = total
        self._tally = tally
        self._console = console
        self._done = 0
        self._next_line = 0.0
        self._began = time.monotonic()

    def show(self, outcome: Outcome) -> None:
        self._tally.add(outcome)
        self._done += 1
        if self._done < self._next_line and self._done < self._total:
            return
        self._next_line = self._done + self._total / PLAIN_LINES
        left_s = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        line = f"asking: {self._done}/{self._total}, {left_s:.0f} s left, {_state(self._tally)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _state(tally: Tally) -> str:
    return f"{tally.spent()}, {sum(tally.rejected.values())} rejected"
