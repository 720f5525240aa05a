"""The ledger leaves as a table, by the file's suffix, and starts another run."""

import json
import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from diva_engine.algorithm.difficulty import COLUMNS, DifficultyLedger
from diva_engine.algorithm.hint_control import HintState
from diva_engine.config import Config, DifficultyConfig
from diva_engine.records import UserError
from diva_engine.settings import build_config
from diva_engine.trainer.ledger_files import ledger_rows, open_ledger, read_ledger, write_ledger
from python_tests.scored import make_group

SUFFIXES = ["parquet", "csv", "json", "jsonl"]
CPU = torch.device("cpu")


def example():
    ledger = DifficultyLedger(DifficultyConfig())
    groups = [make_group([0.0, 1.0, 0.0], id) for id in ("007", 'a,"b"', "é\n")]
    ledger.observe(groups, step=4)
    ledger.set_hint(groups[0].variant.problem, HintState(3, 1))
    ledger.set_visual_entropy(groups[1].variant.problem, 1.25, step=2)
    return ledger


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_is_read_back_as_it_was_written(tmp_path, suffix):
    rows = ledger_rows(example())
    path = tmp_path / "new" / f"ledger.{suffix}"
    write_ledger(rows, path)
    found = read_ledger(path)
    assert list(found) == ["007", 'a,"b"', "é\n"]
    for row in rows:
        known = {name: value for name, value in row.items() if name != "id" and value is not None}
        assert found[row["id"]] == known
    assert found["007"]["difficulty"] == pytest.approx(5 + 4 * (0.5 - 1 / 3), abs=1e-6)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no half file is left"


def warm(path):
    return build_config({"difficulty.warm_start": str(path)})


def test_a_warm_start_tells_what_matches(tmp_path, capsys):
    path = tmp_path / "ledger.parquet"
    write_ledger(ledger_rows(example()), path)
    ledger = open_ledger(warm(path), ["007", "é\n", "unknown", "other"], CPU)
    assert ledger.ids == ["007", "é\n"]
    assert "levels of 2 of 4 questions; 2 are not in it, 1 of its rows match no question" in capsys.readouterr().out
    first = example()
    assert ledger.difficulty.tolist() == [first.difficulty[0].item(), first.difficulty[2].item()]
    resumed = replace(Config(), difficulty=warm("gone.parquet").difficulty)
    resumed = replace(resumed, trainer=replace(resumed.trainer, load_checkpoint_path="latest"))
    assert open_ledger(resumed, ["007"], CPU).ids == [], "a checkpoint has its own"


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)


REFUSED = {
    "missing": ("no.parquet", lambda p: None, "no.parquet cannot be read"),
    "suffix": ("a.txt", lambda p: p.write_text(""), "written as .parquet, .csv, .json, .jsonl"),
    "no parquet": ("a.parquet", lambda p: p.write_text("x" * 99), "is no readable parquet"),
    "no json": ("a.json", lambda p: p.write_text("{"), "is no readable json"),
    "json, but no rows": ("a.json", lambda p: p.write_text('{"id": 1}'), "it holds no array of rows"),
    "without ids": ("a.parquet", lambda p: write_parquet(p, difficulty=[1.0]), "a.parquet:0 has no id"),
    "without levels": ("a.parquet", lambda p: write_parquet(p, id=["q"]), "a.parquet:0: difficulty is None"),
    "level out of range": ("a.jsonl", lambda p: p.write_text('{"id": "q", "difficulty": 12}\n'), "must be in [1, 9]"),
    "level that is none": ("a.csv", lambda p: p.write_text("id,difficulty\nq,high\n"), "is 'high', no number"),
    "endless count": (
        "a.json",
        lambda p: p.write_text(json.dumps([{"id": "q", "difficulty": 2, "visits": math.inf}])),
        "visits is inf",
    ),
    "no question in common": (
        "a.csv",
        lambda p: p.write_text("id,difficulty\nx1,2\n"),
        "knows none of the 1 questions: its ids are like 'x1', theirs like 'q'",
    ),
}


@pytest.mark.parametrize(("name", "write", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_ledger_is_named(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UserError) as error:
        open_ledger(warm(tmp_path / name), ["q"], CPU)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_column_is_written():
    assert ledger_rows(example())[0].keys() == {"id", *COLUMNS}
