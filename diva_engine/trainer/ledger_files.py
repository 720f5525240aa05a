"""The difficulty ledger as a table that people and other runs read: parquet, csv, json or jsonl, by its suffix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch

from diva_engine.algorithm.difficulty import COLUMNS, DifficultyLedger
from diva_engine.config import Config
from diva_engine.distributed import say
from diva_engine.records import UserError

Row = dict[str, Any]
SCHEMA = pa.schema(
    [("id", pa.string())]
    + [(name, pa.float64() if isinstance(blank, float) else pa.int64()) for name, blank in COLUMNS.items()]
)


def ledger_rows(ledger: DifficultyLedger) -> list[Row]:
    """One row a question met: its id and the ledger's columns, None where nothing is known."""
    columns: dict[str, list[Any]] = {"id": ledger.ids}
    columns |= {name: [_known(value) for value in getattr(ledger, name).tolist()] for name in COLUMNS}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_ledger(rows: list[Row], path: Path) -> None:
    """Writes the rows, whole or not at all. Raises UserError where the suffix or the folder is of no use."""
    writer = _find(_WRITERS, path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(rows, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give another path") from None


def read_ledger(path: Path) -> dict[str, Row]:
    """Rows by question id, known values only; every row has a difficulty in [1, 9].

    Raises UserError, naming file and row, for anything that is no ledger.
    """
    reader = _find(_READERS, path)
    try:
        rows = reader(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path} is no readable {path.suffix[1:]} ({str(error).splitlines()[0]})") from None
    found: dict[str, Row] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or row.get("id") is None:
            raise UserError(f"{path}:{number} has no id; take a file that diva_engine.report --ledger wrote")
        found[str(row["id"])] = _checked(row, f"{path}:{number}")
    return found


def open_ledger(config: Config, question_ids: Collection[str], device: torch.device) -> DifficultyLedger:
    """An empty ledger, or, with `difficulty.warm_start`, one that begins with what that file says of the questions.

    A run that goes on from a checkpoint has its own ledger there and reads no file.
    """
    settings = config.difficulty
    ledger = DifficultyLedger(settings, device)
    if settings.warm_start and not config.trainer.load_checkpoint_path:
        rows = read_ledger(Path(settings.warm_start))
        known = {id: rows[id] for id in question_ids if id in rows}
        if not known:
            raise UserError(
                f"difficulty.warm_start={settings.warm_start} knows none of the {len(question_ids)} questions: its ids "
                f"are like {next(iter(rows), 'none at all')!r}, theirs like {next(iter(question_ids))!r}"
            )
        ledger.warm_start(known)
        say(
            f"{settings.warm_start}: levels of {len(known)} of {len(question_ids)} questions; "
            f"{len(question_ids) - len(known)} are not in it, {len(rows) - len(known)} of its rows match no question"
        )
    return ledger


def _known(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _checked(row: Mapping[str, Any], where: str) -> Row:
    """The row's columns as numbers of their kinds."""
    checked: Row = {}
    for name, blank in COLUMNS.items():
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            number = type(blank)(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{where}: {name} is {value!r}, no number") from None
        if not math.isnan(number):
            checked[name] = number
    if not 1 <= checked.get("difficulty", math.nan) <= 9:
        raise UserError(f"{where}: difficulty is {row.get('difficulty')!r}; it must be in [1, 9]")
    return checked


def _find(table: Mapping[str, Any], path: Path) -> Any:
    if path.suffix.lower() not in table:
        raise UserError(f"{path}: a ledger is written as {', '.join(table)}; give it such a suffix")
    return table[path.suffix.lower()]


def _write_json(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=0), encoding="utf-8")


def _write_json_lines(rows: list[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_json(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError("it holds no array of rows")
    return rows


def _read_csv(path: Path) -> list[Row]:
    # Ids stay as written: 007 is a name.
    options = pyarrow.csv.ConvertOptions(column_types={"id": pa.string()}, strings_can_be_null=False)
    return pyarrow.csv.read_csv(path, convert_options=options).to_pylist()


_WRITERS: dict[str, Callable[[list[Row], Path], None]] = {
    ".parquet": lambda rows, path: pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), path),
    ".csv": lambda rows, path: pyarrow.csv.write_csv(pa.Table.from_pylist(rows, SCHEMA), path),
    ".json": _write_json,
    ".jsonl": _write_json_lines,
}
_READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".parquet": lambda path: pyarrow.parquet.read_table(path).to_pylist(),
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line],
}
