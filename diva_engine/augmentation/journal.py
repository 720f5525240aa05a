"""Every outcome as one line of a file that only grows, so that a killed run goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diva_engine.augmentation.checks import Rejected
from diva_engine.augmentation.prompts import VERSION, Kind
from diva_engine.records import UserError


@dataclass(frozen=True)
class Outcome:
    """What came of one question's requests of one kind."""

    row: int  # of the input file
    kind: Kind
    digest: str  # of the question and its answer: a changed file is not gone on with
    accepted: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    failed: str = ""  # why there is no reply; such an outcome is asked for again by the next run
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # requests whose tokens the server did not tell


class Journal:
    """Outcomes on disk, each flushed to it before it counts. One process at a time holds the file.

    Args:
        path: the file; made where there is none.
        header: what the run's outcomes depend on; a file with another header is refused.

    Raises:
        UserError: the file cannot be used, belongs to another run, or another process has it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.damaged_lines = 0
        self._header = {"version": VERSION, **header}
        try:
            self._file = path.open("a+b", buffering=0)
            self._lock()
            self.outcomes = list(self._read())
        except OSError as error:
            raise UserError(f"the journal {path} cannot be used ({error.strerror}); give another --output") from None

    def append(self, outcome: Outcome) -> None:
        """Writes the outcome through to the disk."""
        self._write(asdict(outcome))
        self.outcomes.append(outcome)

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path} is in use by another process that makes the same output") from None

    def _read(self) -> Iterator[Outcome]:
        """The outcomes of earlier runs; what a kill left of a last line is cut off."""
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write({"header": self._header})
            return
        self._check_header(lines[0])
        for line in lines[1:]:
            try:
                found = json.loads(line)
                found["rejected"] = tuple(Rejected(**one) for one in found["rejected"])
                yield Outcome(**{**found, "accepted": tuple(found["accepted"])})
            except (ValueError, KeyError, TypeError):
                self.damaged_lines += 1  # its question is asked again

    def _check_header(self, line: bytes) -> None:
        try:
            header = json.loads(line)["header"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path} is no journal of this command; move it away or give another --output"
            ) from None
        for name, value in self._header.items():
            if header.get(name) != value:
                raise UserError(
                    f"{self.path} was begun with {name}={header.get(name)}, now it is {value}; "
                    "say the same again, or give another --output"
                )

    def _write(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError("the disk took only a part of the line")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror or error}); make room and give the same command again"
            ) from None
