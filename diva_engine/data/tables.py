"""Raw rows as they lie on disk: Arrow (memory-mapped), json lines, one json array. No row is interpreted here."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diva_engine.records import UserError

if TYPE_CHECKING:
    import datasets

SCAN_ROWS = 1000  # rows turned into Python objects at a time while scanning


class UnreadableRow(Exception):
    """A row that cannot be used; the message is the reason, without file and row."""


@dataclass(frozen=True, slots=True)
class LightRow:
    """What a scan tells of a row: the columns asked for and how many images it has. `error`: why it cannot be read."""

    columns: Mapping[str, Any]
    num_images: int
    error: str = ""


class Table(Protocol):
    """Rows by number, all columns; and a scan that leaves the image bytes alone."""

    name: str  # for messages
    stem: str  # for ids of rows that have none
    folder: Path  # where relative image paths start
    column_names: list[str]  # with "struct.field" for structs

    def __len__(self) -> int: ...

    def row(self, index: int) -> Mapping[str, Any]:
        """Raises UnreadableRow."""

    def scan(self, columns: Sequence[str], image_column: str | None) -> Iterator[LightRow]: ...


class ArrowTable:
    """A Hugging Face dataset, read as Arrow so that images stay encoded."""

    def __init__(self, dataset: datasets.Dataset, name: str, folder: Path) -> None:
        self.name = name
        self.stem = Path(name.split("@")[0]).stem
        self.folder = folder
        self._dataset = dataset.with_format("arrow")
        self.column_names = []
        for field in dataset.features.arrow_schema:
            self.column_names.append(field.name)
            if pa.types.is_struct(field.type):
                self.column_names += [f"{field.name}.{inner.name}" for inner in field.type]

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Mapping[str, Any]:
        return _only_row(self._dataset[index])

    def scan(self, columns: Sequence[str], image_column: str | None) -> Iterator[LightRow]:
        wanted = list(columns) + ([image_column] if image_column and image_column not in columns else [])
        for batch in self._dataset.select_columns(wanted).iter(batch_size=SCAN_ROWS):
            counts = [0] * batch.num_rows
            if image_column:
                counts = count_images(batch.column(image_column))
                if image_column not in columns:
                    batch = batch.drop_columns([image_column])
            yield from _light_rows(batch, counts)


def _light_rows(batch: pa.Table, counts: Sequence[int]) -> Iterator[LightRow]:
    if not batch.num_columns:
        yield from (LightRow({}, count) for count in counts)
        return
    try:
        yield from map(LightRow, batch.to_pylist(), counts)
    except UnicodeDecodeError:  # one bad text spoils the batch: look at each row by itself
        yield from (_light_row(batch.slice(row, 1), count) for row, count in enumerate(counts))


def _light_row(one: pa.Table, count: int) -> LightRow:
    try:
        return LightRow(_only_row(one), count)
    except UnreadableRow as error:
        return LightRow({}, 0, str(error))


def _only_row(one: pa.Table) -> dict[str, Any]:
    try:
        rows: list[dict[str, Any]] = one.to_pylist()
    except UnicodeDecodeError as error:
        raise UnreadableRow(f"a text is not UTF-8 ({error})") from error
    return rows[0]


def count_images(column: pa.ChunkedArray) -> list[int]:
    """Images in each row, without reading their bytes: the length of a list, else 1 where a value stands."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column)
        return [length or 0 for length in lengths.to_pylist()]
    if pa.types.is_struct(kind):
        present = None
        for inner in ("bytes", "path"):
            if kind.get_field_index(inner) >= 0:
                valid = pc.struct_field(column, inner).is_valid()
                present = valid if present is None else pc.or_(present, valid)
        valid = column.is_valid() if present is None else present
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        valid = pc.fill_null(pc.greater(pc.binary_length(column), 0), False)
    else:
        valid = column.is_valid()
    return [int(one) for one in valid.to_pylist()]


class JsonLinesTable:
    """A jsonl file: one object a line, lines found once, parsed when asked for. Keys may differ from line to line."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.stem = path.stem
        self.folder = path.parent
        self._file = os.open(path, os.O_RDONLY)
        self._spans = _line_spans(path)
        self.column_names = _keys(self._readable_rows())

    def __len__(self) -> int:
        return len(self._spans)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def row(self, index: int) -> Mapping[str, Any]:
        offset, length, line = self._spans[index].tolist()
        try:
            row = json.loads(os.pread(self._file, length, offset))
        except (ValueError, RecursionError) as error:
            raise UnreadableRow(f"line {line} is not JSON ({_first_line(error)})") from error
        if not isinstance(row, dict):
            raise UnreadableRow(f"line {line} holds no object, but {type(row).__name__}")
        return row

    def scan(self, columns: Sequence[str], image_column: str | None) -> Iterator[LightRow]:
        return _scan_rows(self, columns, image_column)

    def _readable_rows(self) -> Iterator[Mapping[str, Any]]:
        for index in range(len(self)):
            try:
                yield self.row(index)
            except UnreadableRow:
                continue  # named by the scan


class JsonArrayTable:
    """A json file that holds one array of objects, in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.stem = path.stem
        self.folder = path.parent
        try:
            rows = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} is not JSON ({_first_line(error)}); give an array of objects or jsonl") from error
        self._rows: list[Any] = rows
        self.column_names = _keys(row for row in rows if isinstance(row, dict))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if not isinstance(row, dict):
            raise UnreadableRow(f"holds no object, but {type(row).__name__}")
        return row

    def scan(self, columns: Sequence[str], image_column: str | None) -> Iterator[LightRow]:
        return _scan_rows(self, columns, image_column)


def _scan_rows(table: Table, columns: Sequence[str], image_column: str | None) -> Iterator[LightRow]:
    """A light row for each row of a table that has to read them whole; unreadable ones say why."""
    for index in range(len(table)):
        try:
            yield _light(table.row(index), columns, image_column)
        except UnreadableRow as error:
            yield LightRow({}, 0, str(error))


def _light(row: Mapping[str, Any], columns: Sequence[str], image_column: str | None) -> LightRow:
    images = row.get(image_column) if image_column else None
    count = len(images) if isinstance(images, list) else int(bool(images))
    return LightRow({name: row.get(name) for name in columns}, count)


def _keys(rows: Iterator[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            names[key] = None
            if isinstance(value, dict):
                names.update({f"{key}.{inner}": None for inner in value})
    return list(names)


def _line_spans(path: Path) -> npt.NDArray[np.int64]:
    """Offset, length and 1-based number of every line that is not blank, [lines, 3]."""
    spans = array("q")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                spans.extend((offset, len(line), number))
            offset += len(line)
    return np.frombuffer(spans, dtype=np.int64).reshape(-1, 3)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
