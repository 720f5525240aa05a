"""The command, whole, against a real server: what comes out, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diva_engine.augment import main
from diva_engine.data.dataset import open_problems
from python_tests.augmentation.server import ChatServer, answer_well, completion, good_text
from python_tests.data.pictures import encoded, random_picture


def test_every_row_is_given_what_it_lacks_and_keeps_what_it_has(place, capsys):
    assert place.run("--price-in", "2", "--price-out", "10") == 0
    rows = place.rows()
    assert [row["n"] for row in rows] == list(range(12))
    for row, problem in zip(rows, open_problems(str(place.output)), strict=True):
        assert list(row) == ["problem", "answer", "n", "paraphrases", "steps"]
        assert row["paraphrases"] == [f"{p} {row['problem']}" for p in ("Please tell:", "We would like to know this:")]
        assert row["steps"] == ["Read the picture.", "Put the parts together.", "That ends it."]
        assert (problem.paraphrases, problem.steps) == (tuple(row["paraphrases"]), tuple(row["steps"]))
    assert set(place.server.counts().values()) == {1}
    said = capsys.readouterr()
    assert "paraphrases: 24 for 12 of 12 questions asked" in said.out
    assert "24 requests, in 2,400 out 480 tokens, cost 0.0096" in said.out, "24 * (100 * 2 + 20 * 10) / 1e6"
    assert re.search(r"asking: 24/24, 0 s left, in 2,400 out 480 tokens, cost 0.0096, 0 rejected", said.err)
    assert not list(place.folder.glob("*.tmp"))
    assert (place.folder / "b.rejects.jsonl").read_text() == ""


def test_the_same_command_again_asks_nothing_and_writes_the_same(place):
    assert place.run() == 0
    first = place.output.read_bytes()
    place.output.unlink()
    assert place.run() == 0
    assert place.output.read_bytes() == first
    assert len(place.server.asked) == 24


def picture_rows():
    photo, tall = encoded(random_picture(40, 30), "JPEG"), encoded(random_picture(3000, 1000))
    webp = encoded(random_picture(20, 20), "WEBP")
    return [
        {"problem": "<image>How wide?", "answer": "40", "images": [{"bytes": photo, "path": None}], "variant": None},
        {"problem": "How tall?", "answer": "1000", "images": [{"bytes": tall, "path": None}], "variant": None},
        {"problem": "How small?", "answer": "20", "images": [{"bytes": webp, "path": None}], "variant": ["Tiny?"]},
        {"problem": "No answer", "answer": "", "images": [], "variant": None},
        {"problem": "Why?", "answer": "because", "images": [], "variant": []},
    ]


def test_a_parquet_keeps_rows_types_and_images(place, capsys):
    place.input, place.output = place.folder / "a.parquet", place.folder / "b.parquet"
    table = pa.Table.from_pylist(picture_rows())
    pq.write_table(table, place.input, compression="zstd", row_group_size=2)
    assert place.run() == 0
    made = pq.read_table(place.output)
    assert made.drop_columns(["variant", "steps"]).equals(table.drop_columns(["variant"]))
    assert made.schema.field("variant").type == pa.list_(pa.string())
    assert pq.ParquetFile(place.output).metadata.row_group(0).column(0).compression == "ZSTD"
    variants, steps = made["variant"].to_pylist(), made["steps"].to_pylist()
    assert [len(value or []) for value in variants] == [2, 2, 1, 0, 2]
    assert variants[2] == ["Tiny?"]
    assert [len(value or []) for value in steps] == [3, 3, 3, 0, 3]
    assert "1 questions have paraphrases and keep them" in capsys.readouterr().out
    sent = {asked.question: asked.images for asked in place.server.asked}
    assert sent.keys() == {"[image 1]How wide?", "[image 1]How tall?", "[image 1]How small?", "Why?"}
    assert sent["Why?"] == []
    assert sent["[image 1]How wide?"] == [uri("jpeg", picture_rows()[0]["images"][0]["bytes"])], "sent as it is"
    (shrunk,) = sent["[image 1]How tall?"]
    assert opened(shrunk).size == (1732, 577), "3 to 1, a million pixels at most"
    (small,) = sent["[image 1]How small?"]
    assert opened(small).format == "PNG"


def uri(kind, data):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def opened(data_uri):
    return Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2])))


def test_lists_as_text_and_hugging_face_features_are_kept(place):
    import datasets

    place.input, place.output = place.folder / "a.parquet", place.folder / "b.parquet"
    rows = {"problem": ["A?", "B?"], "answer": ["1", "2"], "new_questions": ["['C?']", ""]}
    features = datasets.Features({name: datasets.Value("string") for name in rows} | {"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({**rows, "image": [random_picture(), None]}, features=features)
    dataset.to_parquet(str(place.input))
    assert place.run() == 0
    made = datasets.Dataset.from_parquet(str(place.output), cache_dir=str(place.folder / "cache"))
    assert isinstance(made.features["image"], datasets.Image)
    assert made["new_questions"][0] == "['C?']"
    assert made["new_questions"][1] == "['Please tell: B?', 'We would like to know this: B?']"
    assert [len(problem.paraphrases) for problem in open_problems(str(place.output))] == [1, 2]


KEPT = '{"problem": "B?", "answer": "2", "steps": ["kept"]}'
JSON_FILES = {
    "array": ("json", '[{"problem": "A?", "answer": 1}, 5, ' + KEPT + "]"),
    "lines": ("json", '{"problem": "A?", "answer": 1}\n\nno json\n' + KEPT),
    "a byte order mark": ("jsonl", '\ufeff{"problem": "A?", "answer": 1}\n' + KEPT),
    "half a character": ("jsonl", '{"problem": "A?", "answer": 1, "u": "\\ud83d"}\n' + KEPT),
}


@pytest.mark.parametrize("case", JSON_FILES)
def test_json_of_every_form(case, place):
    suffix, text = JSON_FILES[case]
    place.input, place.output = place.folder / f"a.{suffix}", place.folder / f"b.{suffix}"
    place.input.write_text(text, encoding="utf-8")
    assert place.run() == 0
    made = place.output.read_text(encoding="utf-8")
    rows = json.loads(made) if case == "array" else [line for line in made.splitlines() if line]
    questions = [one if isinstance(one, dict) else json.loads(one) for one in rows if "problem" in str(one)]
    assert [row["steps"][-1] for row in questions] == ["That ends it.", "kept"]
    assert [len(row["paraphrases"]) for row in questions] == [2, 2]
    if case == "array":
        assert rows[1] == 5
    if case == "lines":
        assert rows[1] == "no json"


def test_questions_of_a_conversation_are_left_alone(place, capsys):
    turns = [
        {"from": who, "value": text} for who, text in (("human", "A?"), ("gpt", "1"), ("human", "B?"), ("gpt", "2"))
    ]
    place.write([{"conversations": turns}, {"conversations": [*turns[:2]]}])
    assert place.run() == 0
    assert "2 questions share their row" in capsys.readouterr().out
    assert ["paraphrases" in row for row in place.rows()] == [False, True]
    assert {asked.question for asked in place.server.asked} == {"A?"}


def test_rejects_are_asked_once_more_counted_and_kept(place, capsys):
    """Paraphrases: the first reply loses the numbers. Steps of one question: always wrong."""

    async def often_bad(asked):
        if asked.kind == "paraphrases" and asked.number == 0:
            return completion(f"<paraphrase>How?</paraphrase><paraphrase>Please tell: {asked.question}</paraphrase>")
        if asked.kind == "steps" and "7 and 8" in asked.question:
            return completion("<step>Surely 1007.</step><step>Yes.</step><answer>1007</answer>")
        return completion(good_text(asked))

    place.server.behaviour = often_bad
    assert place.run("--tries", "2") == 0
    said = capsys.readouterr().out
    assert "steps: 33 for 11 of 12 questions asked\n  rejected 2: a hint gives the answer away" in said
    for reason in ("numbers changed", "same as another paraphrase"):
        assert f"  rejected 12: {reason}" in said
    rejects = [json.loads(line) for line in (place.folder / "b.rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 26
    assert {(one["row"], one["kind"]) for one in rejects if "hint" in one["reason"]} == {(7, "steps")}
    assert "Surely 1007." in next(one["text"] for one in rejects if "hint" in one["reason"])
    assert "steps" not in place.rows()[7]
    assert all(len(row["paraphrases"]) == 2 for row in place.rows())


def test_no_more_requests_are_in_flight_than_allowed_and_no_fewer(place):
    async def slow(asked):
        await asyncio.sleep(0.05)
        return await answer_well(asked)

    place.server.behaviour = slow
    assert place.run("--concurrency", "5") == 0
    assert place.server.most_in_flight == 5


def test_a_limit_asks_for_that_many_and_the_rest_comes_later(place):
    assert place.run("--limit", "5") == 0
    assert len(place.server.asked) == 5
    assert len(place.rows()) == 12
    assert place.run() == 0
    assert set(place.server.counts().values()) == {1}


def test_what_is_asked_is_what_was_said(place):
    body = [
        "--temperature",
        "0.2",
        "--max-tokens",
        "9",
        "--request",
        '{"max_tokens": null, "max_completion_tokens": 77}',
    ]
    assert place.run(*body, "--limit", "1", "--no-steps") == 0
    sent = place.server.asked[0].body
    assert {name: sent.get(name) for name in ("model", "temperature", "max_tokens", "max_completion_tokens")} == {
        "model": "tiny",
        "temperature": 0.2,
        "max_tokens": None,
        "max_completion_tokens": 77,
    }
    assert "Authorization" not in place.server.asked[0].http.headers, "no key, no header"


REFUSED = {
    "no input": (["--input", "nowhere.jsonl"], "--input nowhere.jsonl is no file"),
    "another suffix": (["--output", "b.parquet"], "--output b.parquet must end in .jsonl"),
    "the input again": (["--output", "./a.jsonl"], "is the input; give another name"),
    "no folder": (["--output", "c/b.jsonl"], "there is no folder"),
    "nothing to make": (["--paraphrases", "0", "--no-steps"], "leaves nothing to make"),
    "nothing in flight": (["--concurrency", "0"], "--concurrency 0: give a number of at least 1"),
    "no time": (["--timeout", "nan"], "--timeout nan: give a number"),
    "no address": (["--base-url", "localhost:8000"], "--base-url 'localhost:8000' is no address"),
    "a wild port": (["--base-url", "http://a:99999"], "is no address"),
    "no fields": (["--request", "[1]"], "--request [1]: give a JSON object"),
    "a field that is ours": (["--request", '{"n": 3}'], "without model, messages, stream and n"),
    "a column that is not there": (["--answer-key", "anser"], "data.answer_key=anser"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_one_line_and_code_2(place, monkeypatch, capsys, words, message):
    monkeypatch.chdir(place.folder)
    place.input, place.output = "a.jsonl", "b.jsonl"
    assert place.run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not place.server.asked
    assert sorted(path.name for path in place.folder.iterdir()) == ["a.jsonl"]


def test_a_missing_library_is_named(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert place.run() == 2
    assert "pip install 'diva-engine[augment]'" in capsys.readouterr().err


def test_a_journal_of_other_wishes_or_questions_is_refused(place, capsys):
    assert place.run("--limit", "1") == 0
    assert place.run("--model", "other") == 2
    assert "was begun with model=tiny, now it is other" in capsys.readouterr().err
    lines = place.input.read_text().splitlines()
    place.input.write_text("\n".join([lines[0].replace("How", "Say how"), *lines[1:]]))
    assert place.run() == 2
    assert "row 0 of the input is another question" in capsys.readouterr().err
    (place.folder / "b.journal.jsonl").write_text("something else\n")
    assert place.run() == 2
    assert "is no journal of this command" in capsys.readouterr().err


def test_an_image_that_cannot_be_sent_costs_its_question_alone(place, capsys):
    (place.folder / "broken.png").write_bytes(b"PNG")
    rows = [{"problem": "A?", "answer": "1", "image": "broken.png"}, {"problem": "B?", "answer": "2", "image": None}]
    place.write(rows)
    assert place.run() == 1
    said = capsys.readouterr()
    assert "failed 2: the image" in said.out
    assert "2 questions have no reply yet; the same command asks them again" in said.err
    assert ["steps" in row for row in place.rows()] == [False, True]


def test_it_runs_as_the_documentation_says(place):
    command = [sys.executable, "-m", "diva_engine.augment", *place.words("--limit", "2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    with pytest.raises(SystemExit):
        main(["--help"])
    with ChatServer() as other:
        place.server = other
        assert place.run() == 0, "another address of the same model goes on"
    assert len(other.asked) == 22
