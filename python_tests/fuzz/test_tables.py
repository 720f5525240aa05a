"""Files of questions that are cut, damaged, of wrong types or hostile: questions or one line that names the file."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diva_engine.data.columns import ALIASES
from diva_engine.data.dataset import ProblemSet, open_problems
from diva_engine.data.prompts import PromptEncoder
from diva_engine.records import UserError
from python_tests.data.pictures import random_png, tiny_processor
from python_tests.fuzz_budget import TRIED


def read_all(path: Path) -> str:
    """Reads every question of the file as a run does; the refusal, "" where there was none."""
    try:
        problems = open_problems(str(path))
        problems.drop_unusable(PromptEncoder(tiny_processor()).check)
    except UserError as error:
        assert_names_the_place(str(error), path)
        return str(error)
    assert_sound(problems)
    return ""


def assert_names_the_place(message: str, path: Path) -> None:
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 2000


def assert_sound(problems: ProblemSet) -> None:
    for index in range(len(problems)):
        problem = problems[index]
        assert problem.text.strip()
        assert problem.answer.strip()
        assert problem.text.count("<image>") == len(problem.images)
    for bad in problems.bad_rows:
        assert bad.reason
        assert "\n" not in bad.reason


ROWS = [
    {"id": str(row), "problem": "<image>a", "answer": str(row), "images": [{"bytes": random_png(8, 8), "path": None}]}
    for row in range(20)
]


def whole_parquet(path: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    return path.read_bytes()


def places_of(path: Path) -> list[int]:
    """Where a parquet's parts begin and end: marks, pages, columns, row groups, footer and its length."""
    size = path.stat().st_size
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little")
    found = {0, 1, 3, 4, size - 1, size - 4, size - 5, size - 8, size - 8 - footer, size - 8 - footer // 2}
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            start = column.dictionary_page_offset or column.data_page_offset
            found |= {start, column.data_page_offset, column.data_page_offset + 1, start + column.total_compressed_size}
    return sorted(place for place in found if 0 <= place < size)


def test_a_parquet_cut_at_every_kind_of_place(tmp_path):
    """Cut off there; cut out there with the end kept; zeros from there on, as a crash leaves them."""
    whole = whole_parquet(tmp_path / "whole.parquet")
    places = places_of(tmp_path / "whole.parquet")
    assert len(places) > 40
    path = tmp_path / "a.parquet"
    for place in places:
        for data in (whole[:place], whole[:place] + whole[place + 1 :], whole[:place] + bytes(len(whole) - place)):
            path.write_bytes(data)
            TRIED["parquet files cut"] += 1
            is_spoilt_at_the_end = data[-8:] != whole[-8:]
            assert bool(read_all(path)) or not is_spoilt_at_the_end, f"cut at {place}: read as if whole"


def test_a_parquet_damaged_anywhere(tmp_path, budget):
    whole = whole_parquet(tmp_path / "whole.parquet")
    path = tmp_path / "a.parquet"
    for draw in budget.draws("parquet files damaged", 25):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.3:
            start = draw.randrange(len(data))
            del data[start : start + draw.choice((1, 4, 100, len(data)))]
        path.write_bytes(data)
        read_all(path)


DAY = datetime.datetime(2026, 1, 1)
ODD_CELLS = {
    "null": pa.nulls(2),
    "true": pa.array([True, None]),
    "int8": pa.array([5, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, 0], pa.uint64()),
    "half": pa.array([1.5, float("inf")], pa.float32()),
    "nan": pa.array([float("nan"), 1e308]),
    "decimal": pa.array([decimal.Decimal("1.50"), None]),
    "time": pa.array([DAY, None]),
    "duration": pa.array([datetime.timedelta(days=1), None]),
    "binary": pa.array([b"\xff\x00", b""]),
    "large text": pa.array(["a", ""], pa.large_string()),
    "NUL": pa.array(["\0", "a\0b"]),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "list of ints": pa.array([[1], []]),
    "list of nulls": pa.array([[None], None]),
    "nested lists": pa.array([[["a"]], []]),
    "fixed list": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
    "struct": pa.array([{"x": 1}, None]),
    "struct of images": pa.array([{"bytes": b"", "path": "../x"}, {"bytes": None, "path": "\0"}]),
    "list of structs": pa.array([[{"role": "user", "content": 1}], [{"from": "x"}]]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
}
FIELD_COLUMNS = {field: aliases[0].split(".")[0] for field, aliases in ALIASES.items()} | {"nested": "reward_model"}


@pytest.mark.parametrize("field", FIELD_COLUMNS)
def test_a_column_of_any_type(field, tmp_path):
    """Every kind of cell in every column that is read, beside columns that are right."""
    right = {"problem": pa.array(["a", "b"]), "answer": pa.array(["1", "2"])}
    if field == "nested":
        del right["answer"]
    path = tmp_path / "a.parquet"
    for cells in ODD_CELLS.values():
        pq.write_table(pa.table(right | {FIELD_COLUMNS[field]: cells}), path)
        TRIED["parquet files with a column of a wrong type"] += 1
        read_all(path)


METADATA = [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"info": 5}', b'{"info": {"features": []}}'),
    *(b'{"info": {"features": {"problem": 5}}}', b'{"info": {"features": {"problem": {"_type": "Nope"}}}}'),
    *(b'{"info": {"features": {"problem": {"_type": "Value"}}}}', b'{"info": {"features": {"x": {"_type": "Image"}}}}'),
    *(b'{"info": {"features": {"problem": {"dtype": "int32", "_type": "Value"}}}}',),
    *(
        b'{"info": {"features": {"problem": {"_type": "Audio"}}}}',
        b'{"info": {"features": {"problem": {"_type": "os"}}}}',
    ),
]


def test_metadata_of_any_kind(tmp_path):
    """What `datasets` finds in a parquet about its columns."""
    path = tmp_path / "a.parquet"
    for metadata in METADATA:
        table = pa.table({"problem": ["a"], "answer": ["1"]}).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, path)
        TRIED["parquet files with odd metadata"] += 1
        read_all(path)


NAMES = ["", " ", "problem", "problem.x", "\0", "a" * 10_000, "../../x", "réponse", "answer"]


def test_columns_of_any_name(tmp_path, budget):
    path = tmp_path / "a.parquet"
    for draw in budget.draws("parquet files with odd column names", 20):
        names = draw.sample(NAMES, draw.randint(1, 4))
        if draw.random() < 0.3:
            names.append(names[0])  # the same name twice
        pq.write_table(pa.table([pa.array(["x"])] * len(names), names=names), path)
        read_all(path)


BAD_BYTES = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\n\n",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"NaN",
]
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"problem"',
    b'"answer"',
    b'"images"',
    b'"a"',
    b"1",
    b"null",
    b"\n",
    b" ",
]


def test_json_of_any_bytes(tmp_path, budget):
    """Tokens in any order, and good lines with bytes put in."""
    good = json.dumps({"problem": "a", "answer": "1", "images": []}).encode()
    for draw in budget.draws("json files", 150):
        path = tmp_path / draw.choice(("a.json", "a.jsonl"))
        if draw.random() < 0.5:
            data = b"".join(draw.choice(PIECES + BAD_BYTES) for _ in range(draw.randint(1, 40)))
        else:
            place = draw.randrange(len(good) + 1)
            data = good + b"\n" + good[:place] + draw.choice(BAD_BYTES) + good[place:] + b"\n"
        path.write_bytes(data)
        read_all(path)


def test_a_jsonl_line_of_100_mb_that_is_bad_costs_itself_alone(tmp_path):
    """Never closed; and one whose images are a hundred million letters."""
    path = tmp_path / "a.jsonl"
    good = json.dumps({"problem": "a", "answer": "1", "image": None})
    with path.open("w") as file:
        file.write('{"problem": "' + "x" * 100_000_000 + "\n")
        file.write(json.dumps({"problem": "a", "answer": "1", "image": "x" * 100_000_000}) + "\n")
        file.write(good + "\n")
    problems = open_problems(str(path))
    problems.drop_unusable(PromptEncoder(tiny_processor()).check)
    TRIED["jsonl lines of 100 MB"] += 2
    assert [problem.text for problem in problems] == ["a"]
    assert [bad.row for bad in problems.bad_rows] == [0, 1]
    assert all(len(bad.reason) < 1000 for bad in problems.bad_rows), "the message does not repeat the line"


PATHS = [
    *("../secret.png", "/etc/passwd", "sub/../../secret.png", "..", "/", "//host/x.png", "~/x.png", "\0", "a\0b.png"),
    *("file:///etc/passwd", "http://127.0.0.1:9/x.png", "a" * 5000, "a/" * 3000, "/dev/zero", "/dev/stdin", "."),
    *("/proc/self/environ", "pipe", "link", "sub", "CON", "x\n.png", "..\\..\\x.png", "%2e%2e/x.png", "data:,", ""),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["path", "struct", "list"])
def test_image_paths_that_lead_elsewhere(form, tmp_path):
    """Outside the folder, to devices, pipes, folders, addresses: refused by row, and nothing hangs."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(random_png())
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/dev/zero")
    path = folder / "a.jsonl"
    forms = {"path": lambda p: p, "struct": lambda p: {"bytes": None, "path": p}, "list": lambda p: ["x.png", p]}
    rows = [{"problem": "a", "answer": "1", "image": None}]
    rows += [{"problem": "a", "answer": "1", "image": forms[form](name)} for name in PATHS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = open_problems(str(path))
    problems.drop_unusable(PromptEncoder(tiny_processor()).check)
    TRIED["image paths that lead elsewhere"] += len(PATHS)
    kept = [index for index in range(len(PATHS)) if index + 1 not in {bad.row for bad in problems.bad_rows}]
    assert [PATHS[index] for index in kept] == ([""] if form == "path" else []), "no path at all is no image"
    assert all("\n" not in bad.reason for bad in problems.bad_rows)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (open, (str(self._path), "w"))


def test_a_pickled_extension_type_in_a_parquet_is_not_run(tmp_path):
    """What older Arrow libraries unpickled on reading."""
    mark = tmp_path / "executed"
    field = pa.field("answer", pa.string()).with_metadata(
        {
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Bomb(mark), protocol=0),
        }
    )
    schema = pa.schema([pa.field("problem", pa.string()), field])
    pq.write_table(pa.table([["a"], ["1"]], schema=schema), tmp_path / "a.parquet")
    read_all(tmp_path / "a.parquet")
    TRIED["files with a pickled payload"] += 1
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the payload works where it is unpickled"


def test_a_python_list_that_is_code_is_not_run(tmp_path):
    mark = tmp_path / "executed"
    code = f"[open({str(mark)!r}, 'w')]"
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "a", "answer": "1", "steps": code}) + "\n")
    assert "look like a Python list but cannot be read as one" in read_all(tmp_path / "a.jsonl")
    assert not mark.exists()
