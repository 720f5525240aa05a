"""The run as one sees it: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

RECENT_ROWS = 12
ETA_STEPS = 20  # the expected end is reckoned from this many last steps
PLAIN_LINES = 200  # about so many lines for a whole run where stdout is not a terminal
REFRESH_PER_S = 2


@dataclass(frozen=True)
class Column:
    """A column of the table: its head, its metric and how a number is written."""

    title: str
    metric: str
    form: str


COLUMNS = (
    Column("reward", "reward/mean", ".3f"),
    Column("accuracy", "reward/accuracy", ".1%"),
    Column("dead", "groups/dead", ".0%"),
    Column("solved", "groups/solved", ".0%"),
    Column("useful", "questions/utilisation", ".0%"),
    Column("difficulty", "difficulty/mean", ".2f"),
    Column("length", "response/length", ".1f"),
    Column("tokens/s", "throughput/tokens_per_s", ",.0f"),
    Column("s/step", "time/step_s", ".2f"),
)
LEGEND = "dead: groups with no right answer; solved: with right ones only; useful: questions with unequal rewards"


class Console:
    """Shows steps as they come. `is_shown` False shows nothing (other ranks, or `console` not among the loggers)."""

    def __init__(self, num_steps: int, *, is_shown: bool = True, terminal: Terminal | None = None) -> None:
        self._num_steps = num_steps
        self._terminal = terminal or Terminal()
        self._is_shown = is_shown
        self._is_live = is_shown and self._terminal.is_terminal
        self._plain_every = max(1, math.ceil(num_steps / PLAIN_LINES))
        self._step = 0
        self._phase = ""
        self._phase_began = time.monotonic()
        self._rows: deque[tuple[int, list[str]]] = deque(maxlen=RECENT_ROWS)
        self._held_out = ""
        self._noted: set[str] = set()
        self._ends: deque[tuple[int, float]] = deque([(0, time.monotonic())], maxlen=ETA_STEPS + 1)
        self._has_stepped = False
        self._live: Live | None = None
        self.activity: Callable[[], str] = lambda: ""  # what the step under way is doing

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A finished step (counted from 1) and its metrics; those that a column lacks show as "-"."""
        if not self._has_stepped:  # a resumed run does not start at 0
            self._ends[0] = (step - 1, self._ends[0][1])
        is_first, self._has_stepped = not self._has_stepped, True
        self._step = step
        self._ends.append((step, time.monotonic()))
        cells = [written(metrics.get(column.metric), column.form) for column in COLUMNS]
        self._rows.append((step, cells))
        self._phase, self._phase_began = "", time.monotonic()
        if self._is_live:
            self._refresh()
        elif self._is_shown and (is_first or step % self._plain_every == 0 or step == self._num_steps):
            self._print(self._plain_line(step, cells))

    def phase(self, name: str) -> None:
        """What the run is doing now, where it is not stepping."""
        self._phase, self._phase_began = name, time.monotonic()
        if self._is_live:
            self._refresh()
        elif self._is_shown:
            self._print(f"{name} ...")

    def note(self, line: str) -> None:
        """Something that the user should know, printed once a run."""
        if self._is_shown and line not in self._noted:
            self._noted.add(line)
            self._print(f"note: {line}")

    def still(self, line: str) -> None:
        """Something that goes on for long; a terminal shows what goes on anyway."""
        if self._is_shown and not self._is_live:
            self._print(line)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Held-out numbers after a step."""
        prefix = "val/accuracy/"
        parts = [f"{name.removeprefix(prefix)} {written(value, '.0%')}" for name, value in metrics.items()
                 if name.startswith(prefix)]  # fmt: skip
        detail = f" ({', '.join(parts)})" if parts else ""
        self._held_out = f"held-out accuracy after step {step}: {written(metrics.get('val/accuracy'), '.1%')}{detail}"
        self._phase, self._phase_began = "", time.monotonic()
        if self._is_live:
            self._refresh()
        elif self._is_shown:
            self._print(self._held_out)

    def close(self, final_line: str = "") -> None:
        """Leave the table as it stands and print the last line."""
        if self._live is not None:
            self._phase = ""
            self._live.update(self._render(), refresh=True)
            self._live.stop()
            self._live = None
        self._is_live = False
        if self._is_shown and final_line:
            self._print(final_line)

    def _refresh(self) -> None:
        if self._live is None:
            self._live = Live(console=self._terminal, get_renderable=self._render, refresh_per_second=REFRESH_PER_S)
            self._live.start()
            atexit.register(self.close)  # a run that ends by an error leaves the cursor visible
        self._live.refresh()

    def _render(self) -> RenderableType:
        table = Table()
        table.add_column("step", justify="right")
        for column in COLUMNS:
            table.add_column(column.title, justify="right")
        for step, cells in list(self._rows):
            table.add_row(str(step), *cells)
        progress = Table.grid(padding=(0, 1))
        progress.add_row(
            Text(f"step {self._step}/{self._num_steps}"),
            ProgressBar(total=max(1, self._num_steps), completed=self._step, width=40),
            Text(f"{self._eta()}{self._phase_words()}"),
        )
        below = [Text(line) for line in (self._held_out,) if line]
        return Group(table, Text(LEGEND, style="dim"), *below, progress)

    def _plain_line(self, step: int, cells: list[str]) -> str:
        numbers = "  ".join(f"{column.title} {cell}" for column, cell in zip(COLUMNS, cells, strict=True))
        return f"step {step}/{self._num_steps}  {numbers}  {self._eta()}"

    def _eta(self) -> str:
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        if last == first:
            return ""
        left = (self._num_steps - last) * (ended - began) / (last - first)
        return f"{duration(left)} left"

    def _phase_words(self) -> str:
        if not self._phase:
            words = self.activity()
            return f" · {words}" if words else ""
        return f" · {self._phase} {duration(time.monotonic() - self._phase_began)}"

    def _print(self, line: str) -> None:
        self._terminal.print(line, markup=False, highlight=False, soft_wrap=True)


def written(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def duration(seconds: float) -> str:
    """ "42 s", "3:07", "2:03:07"."""
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
