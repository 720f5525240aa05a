"""The command: what it writes, twice the same, and what it refuses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from diva_engine.demo.__main__ import main

ROWS = {  # train, test
    "tiles": (144, 288),
    "tiles_hard": (96, 192),
    "polygons": (96, 96),
    "sums": (96, 96),
}
COLUMNS = ["id", "problem", "answer", "images", "difficulty", "level", "variant", "step2"]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("built") / "demo"
    assert main(["build", str(place), "--warm-up-steps", "2"]) == 0
    return place


@pytest.mark.parametrize("name", ROWS)
def test_a_source_has_its_rows_and_columns(folder: Path, name: str) -> None:
    for split, num_rows in zip(("train", "test"), ROWS[name], strict=True):
        table = pyarrow.parquet.read_table(folder / f"{name}_{split}.parquet")
        assert table.column_names == COLUMNS
        assert table.num_rows == num_rows


def test_rows_read_as_people_use_them(folder: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_parquet(str(folder / "tiles_train.parquet"), cache_dir=str(tmp_path))
    rows = rows.cast_column("images", datasets.Sequence(datasets.Image()))
    assert rows[0]["images"][0].size == (84, 84)
    assert rows[0]["problem"].count("<image>") == 1
    assert all(len(row["step2"]) == row["level"] for row in rows)
    assert all(text.count("<image>") == 1 for text in rows[0]["variant"])


@pytest.mark.parametrize("name", ROWS)
def test_train_and_test_share_no_question(folder: Path, name: str) -> None:
    splits = [pyarrow.parquet.read_table(folder / f"{name}_{split}.parquet").to_pylist() for split in ("train", "test")]
    images = [{row["images"][0]["bytes"] for row in rows} for rows in splits]
    assert not images[0] & images[1]
    assert not {row["id"] for row in splits[0]} & {row["id"] for row in splits[1]}


def test_what_an_interrupted_build_left_is_replaced_by_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / "demo.unfinished"
    left.mkdir()
    (left / "half.parquet").write_bytes(b"PAR1")
    assert main(["build", str(tmp_path / "demo"), "--warm-up-steps", "2"]) == 0
    assert digest(tmp_path / "demo") == digest(folder)
    assert not left.exists()


def test_a_complete_folder_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["build", str(folder), "--warm-up-steps", "2"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_peoples_things_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    place = tmp_path / "mine"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("mine")
    assert main(["build", str(place)]) == 2
    assert "mine exists and is no demo folder" in capsys.readouterr().err
