"""Whatever stands in a table: it becomes questions or a UserError, never another exception."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diva_engine.data.columns import ALIASES
from diva_engine.data.dataset import open_problems
from diva_engine.records import Problem, UserError
from python_tests.data.pictures import random_png

COLUMNS = sorted({alias.split(".")[0] for aliases in ALIASES.values() for alias in aliases})
WORDS = st.sampled_from(
    ["", " ", "<image>", "a<image>b", "<video>", "[", "['a']", "[[[", "1", "nan", "\\boxed{", "\0", "é求"]
)
TURNS = st.fixed_dictionaries(
    {"role": WORDS | st.just("user"), "content": WORDS | st.lists(st.dictionaries(WORDS, WORDS))}
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
CELLS = st.recursive(
    LEAVES | TURNS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "type", "text"]), inner)
    ),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=6) | CELLS, min_size=1, max_size=4)


def read_all(path: Path) -> list[Problem]:
    """All questions that can be read; a UserError is an answer too."""
    try:
        problems = open_problems(str(path))
    except UserError:
        return []
    read = []
    for index in range(len(problems)):
        try:
            read.append(problems[index])
        except UserError:
            continue
    return read


def assert_sound(problem: Problem) -> None:
    assert problem.text.strip()
    assert problem.answer.strip()
    assert problem.text.count("<image>") == len(problem.images)
    assert all(isinstance(text, str) for text in (*problem.paraphrases, *problem.steps))
    assert problem.difficulty is None or 1 <= problem.difficulty <= 9


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_any_json_row(rows, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for problem in read_all(path):
        assert_sound(problem)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), question=st.booleans())
def test_any_bytes_as_json(data, question, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes((b'{"problem": "a", "answer": "1"}\n' if question else b"") + data)
    for problem in read_all(path):
        assert_sound(problem)


@pytest.mark.parametrize("seed", [*range(12), 229, 413])  # the last two spoil texts and column names
def test_a_damaged_parquet(seed, tmp_path):
    """Bytes changed or cut off anywhere."""
    path = tmp_path / "a.parquet"
    rows = [
        {"id": row, "problem": "<image>a", "answer": str(row), "images": [{"bytes": random_png(8, 8), "path": None}]}
        for row in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    draw = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 20)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    if draw.random() < 0.3:
        del data[draw.randrange(len(data)) :]
    path.write_bytes(data)
    read_all(path)
