"""Questions have ids, places and a report: every row that cannot be used is named."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diva_engine.data.dataset import open_problems, write_report
from diva_engine.data.images import load_image
from diva_engine.records import UserError
from python_tests.data.pictures import random_png
from python_tests.data.tables import write_jsonl, write_parquet

PNG = random_png()


def test_ids_come_from_the_column_or_from_file_and_row(tmp_path):
    rows = [{"qid": "x", "problem": "a", "answer": "1"}, {"qid": None, "problem": "b", "answer": "1"}]
    problems = open_problems(write_jsonl(tmp_path / "geo.jsonl", rows))
    assert problems.ids == ["x", "geo:1"]
    assert [p.id for p in problems] == problems.ids
    assert problems.index_of("geo:1") == 1


def test_files_of_the_same_name_give_different_ids(tmp_path):
    sources = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources.append(write_jsonl(tmp_path / name / "train.jsonl", [{"problem": name, "answer": "1"}]))
    problems = open_problems(sources)
    assert problems.ids == ["one/train:0", "two/train:0"]
    assert [p.text for p in problems] == ["one", "two"]


def test_a_repeated_id_names_both_rows(tmp_path):
    rows = [{"id": "x", "problem": str(i), "answer": "1"} for i in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", [rows[0], {**rows[1], "id": "y"}, rows[2]])
    with pytest.raises(UserError, match=r"the id 'x': .*a.jsonl:0 and .*a.jsonl:2; .* data.id_key=none"):
        open_problems(path)
    assert open_problems(path, columns={"id": None}).ids == ["a:0", "a:1", "a:2"]


BAD_ROWS = {
    "empty answer": ({"problem": "a", "answer": " "}, "the answer is empty"),
    "no answer": ({"problem": "a"}, "the answer is empty"),
    "NaN as answer": ({"problem": "a", "answer": float("nan")}, "the answer is empty"),
    "several answers": ({"problem": "a", "answer": ["1", "2"]}, "the answer is list"),
    "empty question": ({"problem": "", "answer": "1"}, "the question is empty"),
    "no question": ({"answer": "1"}, "the question is empty"),
    "number as question": ({"problem": 3, "answer": "1"}, "the question is no text"),
    "more markers": (
        {"problem": "<image><image>", "answer": "1", "images": ["a.png"]},
        "the question has 2 <image> markers, the row 1 images",
    ),
    "fewer markers": (
        {"problem": "<image>", "answer": "1", "images": ["a.png", "b.png"]},
        "the question has 1 <image> markers, the row 2 images",
    ),
    "marker in a text row": ({"problem": "<image>", "answer": "1"}, "the question has 1 <image> markers, the row 0"),
    "steps that are none": ({"problem": "a", "answer": "1", "steps": 3}, "the steps are int, not a list of texts"),
    "steps of numbers": ({"problem": "a", "answer": "1", "steps": [1]}, "the steps hold something that is no text"),
    "several turns": (
        {"problem": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "answer": "1"},
        "the chat asks 2 questions, the row has one answer",
    ),
    "unknown role": ({"problem": [{"role": "tool", "content": "a"}], "answer": "1"}, "has the role 'tool'"),
    "video": ({"problem": "<video>a", "answer": "1"}, "has a <video> marker; only images are read"),
    "half a character": ({"problem": "a\ud83d", "answer": "1"}, "half a character stands in the question"),
    "half a character in a step": (
        {"problem": "a", "answer": "1", "steps": ["\udc00"]},
        "half a character stands in the steps",
    ),
    "no user": ({"problem": [{"role": "system", "content": "a"}], "answer": "1"}, "no user message"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_left_out_and_named(case, tmp_path):
    bad, reason = BAD_ROWS[case]
    good = {"problem": "a", "answer": "1", "images": [], "steps": None}
    path = write_jsonl(tmp_path / "a.jsonl", [good, bad, good])
    problems = open_problems(path)
    assert [p.origin for p in problems] == [f"{path}:0", f"{path}:2"]
    assert (problems.bad_rows[0].file, problems.bad_rows[0].row) == (path, 1)
    assert reason in problems.bad_rows[0].reason
    assert any(f"{path}:1: " in line for line in problems.describe())
    with pytest.raises(UserError, match=r"a.jsonl:1: .*; mend the row, or set data.on_bad_row=skip"):
        open_problems(path, on_bad_row="stop")


def test_broken_lines_are_named_with_their_number(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"problem": "a", "answer": "1"}).encode()
    deep = b'{"problem":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path.write_bytes(b"\n".join([good, b"", b'{"problem": ', b"[1]", b'{"\xff": 1}', b"\0\0", deep, good]))
    problems = open_problems(str(path))
    assert [problem.text for problem in problems] == ["a", "a"]
    reasons = [bad.reason for bad in problems.bad_rows]
    assert reasons[0].startswith("line 3 is not JSON")
    assert reasons[1] == "line 4 holds no object, but list"
    assert [reason.split(" (")[0] for reason in reasons[2:]] == [f"line {n} is not JSON" for n in (5, 6, 7)]


def test_a_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    answers = pa.array([b"1", b"\xff", b"3"], type=pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"problem": ["a", "b", "c"], "answer": answers}), tmp_path / "a.parquet")
    problems = open_problems(str(tmp_path / "a.parquet"))
    assert [problem.text for problem in problems] == ["a", "c"]
    assert problems.bad_rows[0].row == 1
    assert problems.bad_rows[0].reason.startswith("a text is not UTF-8")


def test_the_report_holds_every_row_left_out(tmp_path):
    rows = [{"problem": "a", "answer": "1"}] + [{"problem": "a", "answer": ""}] * 7
    problems = open_problems(write_jsonl(tmp_path / "a.jsonl", rows))
    assert "  and 2 more" in problems.describe()
    write_report(tmp_path / "bad_rows.jsonl", problems.bad_rows)
    lines = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 8))
    assert lines[0] == {"file": str(tmp_path / "a.jsonl"), "row": 1, "reason": "the answer is empty"}


def test_rows_that_fail_a_check_are_dropped_and_indices_close_up(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "problem": "a" * i, "answer": "1"} for i in range(1, 5)])

    def refuse_even(problem):
        if len(problem.text) % 2 == 0:
            raise UserError(f"{problem.origin}: too even")

    problems = open_problems(path)
    assert problems.drop_unusable(refuse_even) == 2
    assert (problems.ids, len(problems), problems.index_of("3")) == (["1", "3"], 2, 1)
    assert problems[1].text == "aaa"
    assert [str(bad) for bad in problems.bad_rows] == [f"{path}:1: too even", f"{path}:3: too even"]
    with pytest.raises(UserError, match=r"a.jsonl:1: too even; mend the row"):
        open_problems(path, on_bad_row="stop").drop_unusable(refuse_even)


def test_an_image_outside_the_folder_is_refused_when_read(tmp_path):
    row = {"problem": "a", "answer": "1", "images": ["../secret.png"]}
    problems = open_problems(write_jsonl(tmp_path / "a.jsonl", [row]))
    with pytest.raises(UserError, match=r"a.jsonl:0: the image path ../secret.png lies outside"):
        problems[0]


def test_image_dir_is_where_paths_start(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "a", "answer": "1", "images": ["a.png"]}])
    problems = open_problems(path, image_dir=tmp_path / "pictures")
    assert load_image(problems[0].images[0]).size == (84, 56)


def test_describe_tells_what_feeds_what(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "a", "solution": "1", "source": "x"}])
    assert open_problems(path).describe() == [
        f"{path}: 1 rows",
        "  text <- question",
        "  answer <- solution",
        "  without: images, id, difficulty, paraphrases, steps, text_in_image",
        "  not read: source",
        "1 questions, 0 rows left out",
    ]


MISSING_COLUMNS = {
    "misspelt": (
        ["id", "problem", "anwser"],
        {},
        "no column for the answer .* id, problem, anwser; did you mean anwser",
    ),
    "no answer": (["problem", "x"], {}, "its columns are problem, x; set data.answer_key=COLUMN"),
    "no question": (["answer"], {}, "no column for the text .* set data.prompt_key=COLUMN"),
    "named by the user": (["problem", "answer"], {"text": "problm"}, "data.prompt_key=problm, .* did you mean problem"),
}


@pytest.mark.parametrize("case", MISSING_COLUMNS)
def test_a_missing_column_is_named_with_the_nearest(case, tmp_path):
    names, columns, message = MISSING_COLUMNS[case]
    path = write_parquet(tmp_path / "a.parquet", [dict.fromkeys(names, "1")])
    with pytest.raises(UserError, match=message):
        open_problems(path, columns=columns)


def test_the_image_column_of_easyr1_settings_may_be_absent(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"problem": "a", "answer": "1"}])
    assert open_problems(path, columns={"images": "images"})[0].images == ()
    with pytest.raises(UserError, match=r"data.image_key=pictures, but its columns are problem, answer"):
        open_problems(path, columns={"images": "pictures"})


def test_the_user_may_name_the_columns(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"problem": "a", "answer": "1", "q": "b", "gold": "2"}])
    problem = open_problems(path, columns={"text": "q", "answer": "gold"})[0]
    assert (problem.text, problem.answer) == ("b", "2")
