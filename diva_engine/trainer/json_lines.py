"""A file of one JSON object a line that only grows, and that a resumed run can cut back."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class JsonLines:
    """Appends objects to a file, flushed one by one. A full disk costs the line and a warning, never the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._has_warned = False

    def append(self, row: Mapping[str, Any]) -> None:
        line = to_json(row).encode(errors="replace") + b"\n"  # a text may hold half a character
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
            end = self._file.seek(0, os.SEEK_END)
            if self._file.write(line) != len(line):
                self._file.truncate(end)
                raise OSError("the disk took only a part of the line")
            self._has_warned = False
        except OSError as error:
            self._warn(error)

    def cut_after(self, step: int) -> None:
        """Drop the rows of steps later than `step`, and a last line that a killed run left unfinished."""
        self.close()
        if not self.path.exists():
            return
        temporary = self.path.with_name(self.path.name + ".tmp")
        with self.path.open("rb") as old, temporary.open("wb") as new:
            new.writelines(line for line in old if _step_of(line) <= step)
            new.flush()
            os.fsync(new.fileno())
        os.replace(temporary, self.path)

    def sync(self) -> None:
        """Forces what was appended onto the disk."""
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            print(f"warning: {self.path} was not written: {error}; the run goes on", file=sys.stderr)
        self._has_warned = True


def to_json(value: Any) -> str:
    """JSON text; NaN and infinities, which JSON does not know, become null."""
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _step_of(line: bytes) -> float:
    """The step of a line; infinite for one that is no complete row."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
