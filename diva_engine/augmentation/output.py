"""The input file once more, with what was made in its columns: same rows, same order, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from diva_engine.augmentation.journal import Outcome
from diva_engine.records import UserError

ROWS_AT_A_TIME = 500
Made = Mapping[int, Mapping[str, tuple[str, ...]]]  # row -> column -> texts


@dataclass(frozen=True)
class Whole:
    """A path that a file takes only when it is complete."""

    path: Path

    @contextmanager
    def writing(self) -> Any:
        """Gives the temporary path; renames it, flushed to the disk, when the block ends well."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror or error}); the journal is kept") from None
        finally:
            temporary.unlink(missing_ok=True)


def check_output(source: Path, output: Path) -> None:
    """Raises UserError where the output cannot be put, before an hour of requests is spent."""
    if not source.is_file():
        raise UserError(f"--input {source} is no file; give a {', '.join(_WRITERS)} file")
    if source.suffix.lower() not in _WRITERS:
        raise UserError(
            f"--input {source}: cannot write {source.suffix or 'a file without suffix'}; give {', '.join(_WRITERS)}"
        )
    if source.suffix.lower() != output.suffix.lower():
        raise UserError(f"--output {output} must end in {source.suffix}, as the input does: rows are kept as they are")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}; make it first")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input; give another name")


def write_output(source: Path, output: Path, made: Made) -> None:
    """Writes the input's rows with `made` filled in. A column that is not there is added; no value is replaced but an
    empty one."""
    with Whole(output).writing() as temporary:
        _WRITERS[source.suffix.lower()](source, temporary, made)


def write_rejects(path: Path, outcomes: Iterable[Outcome]) -> int:
    """One line a rejected text: row, kind, reason, text. Returns their number."""
    count = 0
    with Whole(path).writing() as temporary, temporary.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            for rejected in outcome.rejected:
                line = {"row": outcome.row, "kind": outcome.kind, "reason": rejected.reason, "text": rejected.text}
                file.write(json.dumps(line) + "\n")
                count += 1
    return count


def _write_parquet(source: Path, target: Path, made: Made) -> None:
    file = pq.ParquetFile(source)
    columns = list(dict.fromkeys(column for row in made.values() for column in row))
    schema = file.schema_arrow
    for column in columns:
        index = schema.get_field_index(column)
        if index < 0:
            schema = schema.append(pa.field(column, pa.list_(pa.string())))
        elif _is_untyped(schema.field(index).type):  # no row of the input has a value
            schema = schema.set(index, pa.field(column, pa.list_(pa.string())))
    codec = file.metadata.row_group(0).column(0).compression.lower()
    row = 0
    with pq.ParquetWriter(target, schema, compression="none" if codec == "uncompressed" else codec) as writer:
        for batch in file.iter_batches(ROWS_AT_A_TIME):
            writer.write_batch(_filled(batch, schema, row, made, columns))
            row += batch.num_rows


def _filled(batch: pa.RecordBatch, schema: pa.Schema, first: int, made: Made, columns: list[str]) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        is_there = field.name in batch.schema.names
        if field.name not in columns:
            arrays.append(batch.column(field.name))
            continue
        values = batch.column(field.name).to_pylist() if is_there else [None] * batch.num_rows
        as_text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        for i, value in enumerate(values):
            texts = made.get(first + i, {}).get(field.name, ())
            if texts and not value:
                values[i] = repr(list(texts)) if as_text else list(texts)  # as R1-ShareVL writes lists
        arrays.append(pa.array(values, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _is_untyped(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or (pa.types.is_list(kind) and pa.types.is_null(kind.value_type))


def _write_json(source: Path, target: Path, made: Made) -> None:
    """A file of one array, or of one object a line: as its beginning says, whatever its suffix."""
    with source.open("rb") as file, target.open("wb") as out:
        beginning = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if beginning.startswith(b"["):
            rows = json.load(file)
            out.write(_encoded([_with_made(value, made.get(row)) for row, value in enumerate(rows)]))
        else:
            _write_lines(file, out, made)


def _write_lines(lines: IO[bytes], out: IO[bytes], made: Made) -> None:
    row = 0
    for line in lines:
        if line.strip():
            values = made.get(row)
            line = (
                _encoded(_with_made(json.loads(line.removeprefix(b"\xef\xbb\xbf")), values)) + b"\n" if values else line
            )
            row += 1
        out.write(line)


def _with_made(value: Any, made: Mapping[str, tuple[str, ...]] | None) -> Any:
    if not isinstance(value, dict) or not made:
        return value
    return value | {column: list(texts) for column, texts in made.items() if texts and not value.get(column)}


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a character, which only an escape can say
        return json.dumps(value).encode()


_WRITERS: dict[str, Callable[[Path, Path, Made], None]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_json,
    ".json": _write_json,
}
