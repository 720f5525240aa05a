"""The user's questions: opened as they are, indexed from 0, read one by one. Images stay encoded until asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from diva_engine.data.columns import ColumnMap, map_columns
from diva_engine.data.files import open_tables
from diva_engine.data.images import read_image_sources
from diva_engine.data.rows import RowReader
from diva_engine.data.tables import Table, UnreadableRow
from diva_engine.data.wording import brief
from diva_engine.records import Problem, UserError

OnBadRow = Literal["skip", "stop"]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


@dataclass(frozen=True)
class _Source:
    """One table with what reading its rows needs."""

    table: Table
    columns: ColumnMap
    image_dir: Path
    stem: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a problem stands: the number of its source, its row, and its number among the row's problems."""

    source: int
    row: int
    part: int


class ProblemSet:
    """The usable questions of one or more sources. `problems[i]` reads question i; `ids[i]` is its name for good.

    Rows that cannot be used are left out, named in `bad_rows`, and so take no index.
    """

    def __init__(self, sources: Sequence[_Source], on_bad_row: OnBadRow) -> None:
        self._sources = sources
        self._on_bad_row = on_bad_row
        self._readers = [RowReader(source.columns, Counter()) for source in sources]
        self._places: list[_Place] = []
        self._index: dict[str, int] = {}
        self.ids: list[str] = []
        self.bad_rows: list[BadRow] = []
        self.notes: Counter[str] = Counter()
        for number in range(len(sources)):
            self._scan(number)
        if not self._places:
            raise UserError(f"no row of {self._names()} can be used; the first: {self.bad_rows[0]}")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Problem:
        """Question `index`. Raises UserError where its row changed on disk, or an image path leaves the folder."""
        place = self._places[index]
        source = self._sources[place.source]
        origin = f"{source.table.name}:{place.row}"
        try:
            row = source.table.row(place.row)
            image_column = source.columns.chosen["images"]
            images = read_image_sources(row.get(image_column), source.image_dir) if image_column else []
            problems = self._readers[place.source].read(row, _row_id(source, row, place.row), images, origin)
        except (UnreadableRow, UserError) as error:
            raise UserError(f"{origin}: {error}") from error
        return problems[place.part]

    def __iter__(self) -> Iterator[Problem]:
        return (self[index] for index in range(len(self)))

    def index_of(self, problem_id: str) -> int:
        """The index of the question with this id. Raises KeyError."""
        return self._index[problem_id]

    def row_of(self, index: int) -> int:
        """The row of question `index` in its file, from 0. Questions of one conversation share theirs."""
        return self._places[index].row

    def cells(self, field: str) -> Iterator[Any]:
        """What stands in the user's column for `field`, question by question; None where there is no such column."""
        for number, source in enumerate(self._sources):
            rows = [place.row for place in self._places if place.source == number]
            column = source.columns.chosen[field]
            if column is None:
                yield from (None for _ in rows)
                continue
            light = enumerate(source.table.scan([column.split(".")[0]], None))
            current, cell = -1, None
            for row in rows:  # in the order of the file; the questions of one conversation share a row
                while current < row:
                    current, found = next(light)
                    cell = source.columns.value(found.columns, field)
                yield cell

    def columns_of(self, index: int) -> ColumnMap:
        """The columns that feed question `index`."""
        return self._sources[self._places[index].source].columns

    def index_of_row(self, row: int) -> int:
        """The index of the first question of this row, counted from 0 in the first file. Raises KeyError."""
        for index, place in enumerate(self._places):
            if (place.source, place.row) == (0, row):
                return index
        raise KeyError(row)

    def describe(self) -> list[str]:
        """What is printed at start: rows, columns chosen, rows left out."""
        lines = []
        for source in self._sources:
            lines.append(f"{source.table.name}: {len(source.table)} rows")
            lines += [f"  {line}" for line in source.columns.describe()]
        return lines + self.describe_rows() + [f"  {count} {note}" for note, count in self.notes.items()]

    def describe_rows(self) -> list[str]:
        """How many questions there are, and the first rows left out."""
        lines = [f"{len(self)} questions, {len(self.bad_rows)} rows left out"]
        lines += [f"  {bad}" for bad in self.bad_rows[:5]]
        if len(self.bad_rows) > 5:
            lines.append(f"  and {len(self.bad_rows) - 5} more")
        return lines

    def drop_unusable(self, check: Callable[[Problem], None]) -> int:
        """Runs `check` on every question and leaves out those for which it raises UserError; returns their number.

        Indices close up: call it before anything keeps one. With `on_bad_row="stop"` the first is raised instead. A bar
        on the terminal shows how far it is: with 50,000 images it takes some ten seconds.
        """
        kept = []
        for index, place in enumerate(_shown(self._places)):
            try:
                check(self[index])
                kept.append(index)
            except UserError as error:
                self._leave_out(place.source, place.row, str(error))
        if not kept:
            raise UserError(f"no row of {self._names()} can be used; the first: {self.bad_rows[0]}")
        num_dropped = len(self._places) - len(kept)
        self._places = [self._places[index] for index in kept]
        self.ids = [self.ids[index] for index in kept]
        self._index = {problem_id: index for index, problem_id in enumerate(self.ids)}
        return num_dropped

    def _scan(self, number: int) -> None:
        """Reads every row's texts once, without its images, and keeps the places of those that can be used."""
        source = self._sources[number]
        reader = RowReader(source.columns, self.notes)
        image_column = source.columns.chosen["images"]
        rows = source.table.scan(source.columns.light_columns(), image_column)
        for index, light in enumerate(rows):
            if light.error:
                self._leave_out(number, index, light.error)
                continue
            row_id = _row_id(source, light.columns, index)
            try:
                problems = reader.read(light.columns, row_id, [None] * light.num_images, "")
            except UnreadableRow as error:
                self._leave_out(number, index, str(error))
                continue
            for part, problem in enumerate(problems):
                self._keep(problem.id, _Place(number, index, part))

    def _keep(self, problem_id: str, place: _Place) -> None:
        if problem_id in self._index:
            first = self._places[self._index[problem_id]]
            raise UserError(
                f"two rows have the id {brief(repr(problem_id))}: {self._origin(first)} and {self._origin(place)}; "
                "give every row its own id, or set data.id_key=none to number the rows"
            )
        self._index[problem_id] = len(self.ids)
        self.ids.append(problem_id)
        self._places.append(place)

    def _leave_out(self, source: int, row: int, reason: str) -> None:
        name = self._sources[source].table.name
        bad = BadRow(name, row, reason.removeprefix(f"{name}:{row}: "))
        if self._on_bad_row == "stop":
            raise UserError(f"{bad}; mend the row, or set data.on_bad_row=skip")
        self.bad_rows.append(bad)

    def _origin(self, place: _Place) -> str:
        return f"{self._sources[place.source].table.name}:{place.row}"

    def _names(self) -> str:
        return ", ".join(source.table.name for source in self._sources)


def open_problems(
    sources: str | Sequence[str],
    *,
    columns: Mapping[str, str | None] | None = None,
    image_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "skip",
) -> ProblemSet:
    """Opens the user's data.

    Args:
        sources: files, folders or hub names, each also as `path@split`.
        columns: field of Problem -> column, where the aliases would choose otherwise; None leaves the field empty, so
            that {"id": None} numbers the rows.
        image_dir: where relative image paths start, and which none may leave; the data file's folder unless given.
        on_bad_row: leave out a row that cannot be used, or stop at the first.

    Raises:
        UserError: a source is missing, unreadable, empty, lacks a column, or has the same id twice.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    tables = [table for name in names for table in open_tables(name)]
    stems = _distinct_stems(tables)
    opened = []
    for table, stem in zip(tables, stems, strict=True):
        column_map = map_columns(table.column_names, table.name, columns or {})
        folder = Path(image_dir) if image_dir else table.folder
        opened.append(_Source(table, column_map, folder, stem))
    return ProblemSet(opened, on_bad_row)


def write_report(path: Path, bad_rows: Sequence[BadRow]) -> None:
    """The rows left out, one JSON object a line: file, row, reason."""
    with path.open("w", encoding="utf-8") as file:
        for bad in bad_rows:
            file.write(json.dumps({"file": bad.file, "row": bad.row, "reason": bad.reason}) + "\n")


def _shown(places: Sequence[_Place]) -> Iterable[_Place]:
    """The same, with a bar where standard error is a terminal."""
    console = Console(stderr=True)
    return track(places, "checking questions", console=console, transient=True, disable=not console.is_terminal)


def _distinct_stems(tables: Sequence[Table]) -> list[str]:
    """The tables' stems, with their folder in front where two files share one."""
    counts = Counter(table.stem for table in tables)
    return [table.stem if counts[table.stem] == 1 else f"{table.folder.name}/{table.stem}" for table in tables]


def _row_id(source: _Source, row: Mapping[str, object], index: int) -> str:
    value = source.columns.value(row, "id")
    return f"{source.stem}:{index}" if value is None or value == "" else str(value)
