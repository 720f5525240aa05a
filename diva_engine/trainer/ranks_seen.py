"""What the ranks say of themselves in the run's folder, and which of them is behind."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_ranks(run_dir: Path, num_ranks: int, own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of all ranks that can be read, in their order; `silent_s` says how old each is."""
    found: list[Mapping[str, Any]] = []
    for rank in range(num_ranks):
        entry = dict(own) if rank == own["rank"] else _read(run_dir / "status" / f"rank_{rank}.json")
        if entry is not None:
            found.append(entry | {"silent_s": round(max(0.0, time.time() - entry["updated_at_s"]), 1)})
    return found


def slowest_of(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The rank that has begun the fewest phases; of several, the one longest in its phase. None without entries.

    Ranks wait for each other in collective calls, so time alone would name the waiting ones.
    """
    return min(entries, key=lambda entry: (entry["phases_begun"], -entry["in_phase_s"]), default=None)


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return entry
    return None
