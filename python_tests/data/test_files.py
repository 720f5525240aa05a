"""What the user names is found: files, folders, splits, saved datasets. What is not there is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diva_engine.data.dataset import open_problems
from diva_engine.data.files import split_of
from diva_engine.records import UserError
from python_tests.data.pictures import random_picture, random_png


def write(path: Path, *questions: str) -> Path:
    """A parquet or jsonl file that asks these questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"problem": question, "answer": "1"} for question in questions]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions_of(source: object) -> list[str]:
    return [problem.text for problem in open_problems(str(source), on_bad_row="stop")]


FOLDERS = {
    "shards": (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], "", [0, 1]),
    "hub clone": (["data/train-0.parquet", "data/test-0.parquet", "data/validation-0.parquet"], "", [0]),
    "hub clone, test": (["data/train-0.parquet", "data/test-0.parquet"], "@test", [1]),
    "val is validation": (["train.jsonl", "val.jsonl"], "@validation", [1]),
    "split folders": (["train/a.jsonl", "test/a.jsonl"], "@test", [1]),
    "names without split": (["a.jsonl", "b.parquet"], "@train", [0, 1]),
    "only a test split": (["test.jsonl"], "", [0]),
    "hidden files": (["a.jsonl", ".cache/b.jsonl"], "", [0]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_read_by_split(case, tmp_path):
    names, split, expected = FOLDERS[case]
    for number, name in enumerate(names):
        write(tmp_path / "set" / name, str(number))
    (tmp_path / "set" / "README.md").write_text("about")
    assert questions_of(f"{tmp_path / 'set'}{split}") == [str(number) for number in expected]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("MMK12_test.parquet", "test"),
        ("data/dev.jsonl", "validation"),
        ("contest.jsonl", "train"),
        ("eval/a.jsonl", "test"),
    ],
)
def test_splits_are_words_of_the_name(name, split):
    assert split_of(Path(name)) == split


@pytest.mark.parametrize(
    "name", ["odd name.parquet", "a@b.parquet", "a[0].parquet", "star*.parquet", "a@b.jsonl", "ünï.parquet"]
)
def test_any_file_name_is_read(name, tmp_path):
    assert questions_of(write(tmp_path / name, "q")) == ["q"]


def test_a_changed_file_is_read_anew(tmp_path):
    path = write(tmp_path / "a.parquet", "old")
    assert questions_of(path) == ["old"]
    write(path, "new", "newer")
    assert questions_of(path) == ["new", "newer"]


def test_saved_datasets_and_their_splits(tmp_path):
    features = datasets.Features(
        problem=datasets.Value("string"), answer=datasets.Value("string"), images=datasets.List(datasets.Image())
    )
    rows = {"problem": ["<image>q"], "answer": ["1"], "images": [[random_picture()]]}
    one = datasets.Dataset.from_dict(rows, features=features)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "two")
    for source in ("one", "two", "two@test"):
        problem = open_problems(str(tmp_path / source), on_bad_row="stop")[0]
        assert isinstance(problem.images[0], bytes)
    with pytest.raises(UserError, match="two has no split 'dev'; it has train, test"):
        open_problems(str(tmp_path / "two@dev"))


def test_images_of_a_parquet_written_by_datasets_stay_encoded(tmp_path):
    features = datasets.Features(
        problem=datasets.Value("string"), answer=datasets.Value("string"), images=datasets.List(datasets.Image())
    )
    data = random_png()
    rows = {"problem": ["<image>q"], "answer": ["1"], "images": [[{"bytes": data, "path": "x.png"}]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert open_problems(str(tmp_path / "a.parquet"))[0].images == (data,)


def test_hub_names_go_to_the_hub(monkeypatch):
    """The library's own loader is asked for exactly this name and split."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict({"problem": ["q"], "answer": ["1"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = open_problems("hiyouga/geometry3k@test")
    assert asked == [("hiyouga/geometry3k", "test")]
    assert problems.ids == ["geometry3k:0"]
    assert problems[0].origin == "hiyouga/geometry3k@test:0"


def test_a_hub_name_that_cannot_be_loaded_is_named(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"a/b: no such file or folder, and not loadable from the hub \(no network\)"):
        open_problems("a/b")


def truncated(path: Path) -> None:
    write(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-20])


def damaged_inside(path: Path) -> None:
    write(path, *(str(number) * 50 for number in range(1000)))
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)


BROKEN = {
    "missing.parquet": (lambda path: None, "missing.parquet: no such file or folder; give an existing path or a hub"),
    "missing/": (lambda path: None, "no such file or folder"),
    "empty.parquet": (lambda path: path.write_bytes(b""), r"empty.parquet is empty \(0 bytes\)"),
    "empty.jsonl": (lambda path: path.write_bytes(b""), r"empty.jsonl is empty \(0 bytes\)"),
    "blank.jsonl": (lambda path: path.write_bytes(b"\n\n"), "blank.jsonl has no rows"),
    "none.json": (lambda path: path.write_bytes(b"[]"), "none.json has no rows"),
    "no_rows.parquet": (lambda path: pq.write_table(pa.table({"problem": [], "answer": []}), path), "has no rows"),
    "text.parquet": (lambda path: path.write_text("hello there" * 9), "text.parquet is not readable as parquet"),
    "truncated.parquet": (truncated, "truncated.parquet is not readable as parquet"),
    "damaged.parquet": (damaged_inside, "damaged.parquet is not readable as parquet"),
    "half.json": (
        lambda path: path.write_text('[{"problem": 1'),
        r"half.json is not JSON \(.*; give an array of objects",
    ),
    "numbers.json": (lambda path: path.write_text("[1, 2]"), "no column for the text"),
    "table.csv": (lambda path: path.write_text("a,b"), "table.csv: cannot read .csv; give .parquet, .jsonl, .json"),
    "noend": (lambda path: path.write_text("a,b"), "noend: cannot read a file without suffix"),
    "empty_folder": (Path.mkdir, "empty_folder holds no .parquet, .jsonl, .json file"),
    "all_bad.jsonl": (
        lambda path: path.write_text('{"problem": "a", "answer": ""}\n'),
        r"no row of .*all_bad.jsonl can be used; the first: .*all_bad.jsonl:0: the answer is empty",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_named_in_one_line(name, tmp_path):
    make, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as raised:
        open_problems(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_file_has_no_splits(tmp_path):
    path = write(tmp_path / "a.jsonl", "q")
    assert questions_of(f"{path}@train") == ["q"]
    with pytest.raises(UserError, match=r"a.jsonl@test: a file has no splits"):
        open_problems(f"{path}@test")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("text", ['{"problem": "q", "answer": "1"}', '[{"problem": "q", "answer": "1"}]'])
def test_json_is_told_by_its_beginning(name, text, tmp_path):
    for beginning in ("", "\ufeff", "\n  "):
        (tmp_path / name).write_text(beginning + text, encoding="utf-8")
        assert questions_of(tmp_path / name) == ["q"]


def test_a_split_that_a_folder_lacks_is_named(tmp_path):
    write(tmp_path / "set" / "train.jsonl", "a")
    with pytest.raises(UserError, match="has no split 'test'; it has train"):
        open_problems(f"{tmp_path / 'set'}@test")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", "a")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("diva_engine.data.tables.os.open", refuse)
    with pytest.raises(UserError, match=r"a.jsonl: no permission to read it"):
        open_problems(str(path))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(UserError, match=r"a.parquet: its Arrow copy cannot be written to .*; set HF_DATASETS_CACHE"):
        open_problems(str(write(tmp_path / "a.parquet", "a")))


def test_a_line_of_100_million_bytes_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write(json.dumps({"problem": "a", "answer": "1", "note": "x" * 100_000_000}) + "\n")
        file.write(json.dumps({"problem": "b", "answer": "1"}) + "\n")
    assert questions_of(path) == ["a", "b"]


MODEL_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "model.safetensors",
]


def test_the_json_files_of_a_model_are_no_questions(tmp_path):
    write(tmp_path / "demo" / "a_train.parquet", "a")
    write(tmp_path / "demo" / "b_train.json", "b")
    for name in MODEL_FILES:
        (tmp_path / "demo" / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "demo" / "model" / name).write_text("{}")
    write(tmp_path / "demo" / "model" / "answers.jsonl", "c")
    assert questions_of(tmp_path / "demo") == ["a", "b", "c"]
    (tmp_path / "demo" / "model" / "answers.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds no .parquet, .jsonl, .json file beside the model in .*model"):
        questions_of(tmp_path / "demo" / "model")


def test_a_config_alone_makes_no_model(tmp_path):
    write(tmp_path / "set" / "config.json", "a")
    assert questions_of(tmp_path / "set") == ["a"]


def test_several_sources_are_one_dataset(tmp_path):
    paths = [str(write(tmp_path / name, name)) for name in ("a, b.jsonl", "c.parquet")]
    assert [problem.text for problem in open_problems(paths)] == ["a, b.jsonl", "c.parquet"], "commas belong to names"
