"""What went wrong inside a run and what was done about it: told once, counted every step, kept in faults.jsonl."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from diva_engine.distributed import current_world
from diva_engine.records import UserError
from diva_engine.trainer.json_lines import JsonLines

Kind = Literal["actor/skipped_steps", "actor/memory_retries", "rollout/engine_restarts"]
KINDS: tuple[Kind, ...] = ("actor/skipped_steps", "actor/memory_retries", "rollout/engine_restarts")


class StepFailed(UserError):
    """A step cannot be finished, on all ranks alike. Where the weights have not moved yet, the loop saves a checkpoint
    from before the step; then the run ends with this message."""


class FaultLog:
    """Faults that the run survived. `step` is the one under way, counted from 1.

    Without a folder nothing is written; `tell` shows a line to the user.
    """

    def __init__(self, run_dir: Path | None = None, tell: Callable[[str], None] = lambda line: None) -> None:
        self.run_dir, self.step = run_dir, 1
        self._tell = tell
        rank = current_world().rank
        name = f"faults_rank{rank}.jsonl" if rank else "faults.jsonl"
        self._rows = None if run_dir is None else JsonLines(run_dir / name)
        self._counts: Counter[Kind] = Counter()

    def record(self, kind: Kind, line: str, detail: str = "") -> None:
        """Counts a fault; `line` names what happened, what was done and the mend, `detail` goes to the file only."""
        self._counts[kind] += 1
        self._tell(line)
        self._write(kind, line, detail)

    def record_traceback(self, failure: BaseException) -> None:
        """Keeps where a failure came from, its causes included."""
        self._write("traceback", str(failure), "".join(traceback.format_exception(failure)))

    def _write(self, kind: str, line: str, detail: str) -> None:
        if self._rows is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self._rows.append({"step": self.step, "time": now, "fault": kind, "line": line, "detail": detail})

    def take_counts(self) -> dict[str, float]:
        """How often each kind has happened since the last call, as metrics."""
        counts, self._counts = self._counts, Counter()
        return {kind: float(counts[kind]) for kind in KINDS}
