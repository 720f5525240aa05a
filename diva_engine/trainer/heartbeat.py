"""What the run is doing, and for how long: status.json, the console, and the watchdog's clock.

status.json            rewritten whole every few seconds: phase, step, expected end; of several ranks, the slowest
status/rank_N.json     the same of one rank, where there are several
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diva_engine.config import Config
from diva_engine.distributed import World, current_world
from diva_engine.trainer.console import Console, duration
from diva_engine.trainer.json_lines import to_json
from diva_engine.trainer.ranks_seen import read_ranks, slowest_of
from diva_engine.trainer.watchdog import Watchdog

INTERVAL_S = 2.0
ETA_STEPS = 20  # the expected end is reckoned from this many last steps
FIRST_LINE_S = 60.0  # a phase that lasts gets a line on the console after so long, then whenever the time has doubled

State = Literal["running", "finished", "failed"]


@dataclass(eq=False)
class _Phase:
    name: str
    began: float  # by time.monotonic


class Heartbeat:
    """Keeps the phases under way and has a thread write them down. Entering a phase costs two list operations.

    `tell` gets a line about a phase that lasts; `watchdog` is shown every phase's time.
    """

    def __init__(
        self,
        run_dir: Path,
        num_steps: int,
        world: World,
        *,
        tell: Callable[[str], None] = lambda line: None,
        watchdog: Watchdog | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.run_dir, self.num_steps, self.world = run_dir, num_steps, world
        self.step = 0  # finished ones
        self._tell, self._watchdog = tell, watchdog
        self._interval_s = interval_s if watchdog is None else min(interval_s, watchdog.limit_s / 4)
        self._open: list[_Phase] = []  # under way, the outermost first
        self._num_phases = 0  # begun so far
        self._step_ends: deque[float] = deque(maxlen=ETA_STEPS + 1)
        self._next_line_s = FIRST_LINE_S
        self._seen: list[Mapping[str, Any]] = []  # what the ranks last said of themselves
        self._ending = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Beats while the block runs, and says at last how it ended."""
        thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._step_ends.append(time.monotonic())
        thread.start()
        state: State = "failed"
        try:
            yield
            state = "finished"
        finally:
            self._ending.set()
            thread.join()
            if self._watchdog is not None:
                self._watchdog.close()
            self._write(state)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        phase = _Phase(name, time.monotonic())
        self._open.append(phase)
        self._num_phases += 1
        try:
            yield
        finally:
            self._open.remove(phase)

    def advance(self, step: int) -> None:
        """Step `step`, counted from 1, is done."""
        self.step = step
        self._step_ends.append(time.monotonic())

    def restart_clock(self) -> None:
        """The innermost phase has got on: its time counts from now."""
        self._open[-1].began = time.monotonic()

    def words(self) -> str:
        """The phase and its time; of several ranks, the slowest too."""
        words = f"{self.phase_name} {duration(self._in_phase_s())}"
        slowest = slowest_of(self._seen)
        if self.world.size == 1 or slowest is None:
            return words
        return f"{words}; slowest rank {slowest['rank']}: {slowest['phase']} {duration(slowest['in_phase_s'])}"

    @property
    def phase_name(self) -> str:
        open_phases = self._open[-1:]  # a copy: the other thread may leave the phase meanwhile
        return open_phases[0].name if open_phases else "between phases"

    def status(self, state: State = "running") -> dict[str, Any]:
        """This rank's entry."""
        ends = self._step_ends
        last_step_s = ends[-1] - ends[-2] if len(ends) > 1 else None
        mean_s = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None
        return {
            "state": state,
            "rank": self.world.rank,
            "world_size": self.world.size,
            "phase": self.phase_name,
            "in_phase_s": round(self._in_phase_s(), 3),
            "phases_begun": self._num_phases,
            "step": self.step,
            "num_steps": self.num_steps,
            "last_step_s": last_step_s,
            "eta_s": None if mean_s is None else mean_s * (self.num_steps - self.step),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "updated_at_s": time.time(),
        }

    def _in_phase_s(self) -> float:
        open_phases = self._open[-1:]
        return time.monotonic() - open_phases[0].began if open_phases else 0.0

    def _beat_on(self) -> None:
        while not self._ending.wait(self._interval_s):
            self._write("running")
            name, in_phase_s = self.phase_name, self._in_phase_s()
            if self._watchdog is not None:
                self._watchdog.look(name, in_phase_s)
            self._tell_if_long(in_phase_s)

    def _tell_if_long(self, in_phase_s: float) -> None:
        if in_phase_s < FIRST_LINE_S:
            self._next_line_s = FIRST_LINE_S
        elif in_phase_s >= self._next_line_s:
            self._next_line_s = 2 * in_phase_s
            self._tell(f"step {self.step + 1}/{self.num_steps}, rank {self.world.rank}: {self.words()}")

    def _write(self, state: State) -> None:
        """A disk that is full or gone costs the status, never the run."""
        own = self.status(state)
        with suppress(OSError):
            if self.world.size > 1:
                _replace(self.run_dir / "status" / f"rank_{self.world.rank}.json", own)
            if self.world.is_first:
                self._seen = read_ranks(self.run_dir, self.world.size, own)
                slowest = slowest_of(self._seen)
                ranks = {"slowest_rank": slowest and slowest["rank"], "ranks": self._seen}
                _replace(self.run_dir / "status.json", own | (ranks if self.world.size > 1 else {}))


def open_heartbeat(config: Config, run_dir: Path, num_steps: int, console: Console) -> Heartbeat:
    """The heartbeat of this rank, shown by the console, with the watchdog that the settings ask for."""
    world, limit_s = current_world(), config.trainer.phase_limit_s
    watchdog = None
    if limit_s:
        stops = config.trainer.on_phase_limit == "stop"
        watchdog = Watchdog(run_dir / f"stacks_rank{world.rank}.txt", limit_s, stops=stops, tell=console.note)
    heartbeat = Heartbeat(run_dir, num_steps, world, tell=console.still, watchdog=watchdog)
    console.activity = heartbeat.words
    return heartbeat


def _replace(path: Path, status: Mapping[str, Any]) -> None:
    """The file holds the old status or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(to_json(status) + "\n", encoding="utf-8")
    os.replace(temporary, path)
