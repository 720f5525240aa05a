"""The evaluation command, whole: a model folder and a file of questions in, table, report and answers out."""

import json
import re

import pytest
from PIL import Image

from diva_engine.evaluate import main, settings_of_checkpoint
from diva_engine.policy.model import load_policy
from diva_engine.settings import load_config, save_config
from python_tests.models import build_tiny_model
from python_tests.prompts import random_image
from python_tests.questions import EVEN_LENGTH_REWARD, write_questions


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model, a parquet as for training, and a jsonl with pictures beside it as GeoQA has them."""
    folder = tmp_path_factory.mktemp("inputs")
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=32)
    write_questions(folder / "train.parquet", 6)
    (folder / "pictures").mkdir()
    rows = []
    for i in range(5):
        random_image(60, 60, seed=i).save(folder / "pictures" / f"{i}.png")
        row = {"image_path": f"pictures/{i}.png", "question": f"Angle {i}?", "ground_truth": f"<answer> {i} </answer>"}
        rows.append(row | {"subject": ["angles", "areas"][i % 2], "difficulty": 2 + 3 * (i % 2)})
    (folder / "geoqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (folder / "reward.py").write_text(EVEN_LENGTH_REWARD)
    return folder


def run(inputs, tmp_path, *words, data="geoqa.jsonl"):
    """The report and the rows of the answers."""
    arguments = ["--model", str(inputs / "model"), "--data", str(inputs / data)]
    arguments += ["--output", str(tmp_path / "report.json"), "--answers", str(tmp_path / "answers.jsonl"), *words]
    reward = f"worker.reward.reward_function={inputs / 'reward.py'}:score"
    assert main([*arguments, "data.max_response_length=9", reward]) == 0
    assert not list(tmp_path.glob("*.tmp"))
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    return json.loads((tmp_path / "report.json").read_text()), [json.loads(line) for line in answers]


def mean(values):
    return sum(values) / len(values)


def test_everything_at_once(inputs, tmp_path, capsys):
    words = ["--without-image", "--calibrate", "0.8", "--n", "8", "--pass-k", "--by", "subject", "answer"]
    report, rows = run(inputs, tmp_path, *words)
    assert (report["temperature"], report["questions"], report["calibrate"]) == (1.0, 5, 0.8)
    for side in ("with_image", "without_image"):
        answers = [row[side] for row in rows]
        assert [len(group) for group in answers] == [8] * 5
        accuracy = mean([a["accuracy"] for group in answers for a in group])
        assert report[side]["accuracy"] == report[side]["pass@1"] == pytest.approx(accuracy)
        assert report[side]["pass@8"] == mean([any(a["accuracy"] for a in group) for group in answers])
        assert list(report[side]) == [
            *("accuracy", "pass@1", "pass@2", "pass@4", "pass@8", "format", "truncated", "mean_length")
        ]
        truncated = mean([a["finish_reason"] == "length" for group in answers for a in group])
        assert report[side]["truncated"] == pytest.approx(truncated)
    gap = report["with_image"]["accuracy"] - report["without_image"]["accuracy"]
    assert report["text_bias_gap"] == pytest.approx(gap)
    assert list(report["by"]) == ["difficulty", "subject", "answer"]
    assert {level: part["questions"] for level, part in report["by"]["difficulty"].items()} == {"2": 3, "5": 2}
    assert report["by"]["subject"]["areas"]["without_image"] == report["by"]["difficulty"]["5"]["without_image"]
    assert rows[0]["columns"] == {"difficulty": "2", "subject": "angles", "answer": "0"}
    printed = capsys.readouterr().out
    for text in ("pass@8", "no image", "subject areas", "calibrated with gamma 0.8", f"{100 * gap:+.1f}"):
        assert text in printed


def test_the_side_with_images_is_the_same_with_and_without_the_other(inputs, tmp_path):
    report, rows = run(inputs, tmp_path, "--without-image")
    alone, rows_alone = run(inputs, tmp_path)
    assert alone["with_image"] == report["with_image"]
    assert [row["with_image"] for row in rows_alone] == [row["with_image"] for row in rows]
    assert "without_image" not in rows_alone[0]
    assert any(row["with_image"] != row["without_image"] for row in rows), "the image makes a difference"
    calibrated, _ = run(inputs, tmp_path, "--calibrate", "0")
    assert calibrated["with_image"] == report["with_image"]


def test_a_training_file_is_read_as_in_training(inputs, tmp_path, capsys):
    report, rows = run(inputs, tmp_path, "--by", "level", "worker.rollout.max_batch_rows=4", data="train.parquet")
    assert list(report["by"]) == ["level"], "the file has no difficulty"
    assert [part["questions"] for part in report["by"]["level"].values()] == [2, 2, 2]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(6)]
    progress = [line for line in capsys.readouterr().err.splitlines() if line.startswith("answering")]
    assert progress[0].startswith("answering: 4/6 questions, ")
    assert progress[-1] == "answering: 6/6 questions, 0 s left"


REFUSED = {
    "no model": (["--model", "nowhere"], "nowhere: no such folder"),
    "no data": (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    "a column that is not there": (["--by", "subjekt"], "--by subjekt: .* did you mean subject?"),
    "no answers": (["--n", "0"], "--n 0: ask for 1 answer"),
    "the same answer again": (["--n", "2", "--temperature", "0"], "same answer 2 times; take --temperature 1"),
    "a negative temperature": (["--temperature", "-1"], "--temperature -1.0: give a number of at least 0"),
    "a negative gamma": (["--calibrate", "-1"], "gamma of at least 0"),
    "no images to leave out": (["--data", "text.jsonl", "--without-image"], "--without-image: no question .* image"),
    "no images to calibrate by": (["--data", "text.jsonl", "--calibrate", "1"], "--calibrate 1: no question .* image"),
    "no such folder": (["--output", "nowhere/report.json"], "--output nowhere/report.json: there is no folder"),
    "a folder": (["--answers", "pictures"], "--answers pictures is a folder"),
    "a misspelt setting": (["data.max_respons_length=3"], "did you mean data.max_response_length"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_one_line_and_code_2(inputs, monkeypatch, capsys, words, message):
    monkeypatch.chdir(inputs)
    assert main(["--model", "model", "--data", "geoqa.jsonl", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_settings_may_stand_anywhere(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs)
    report = tmp_path / "report.json"
    words = ["--model", "model", "data.max_response_length=4", "--data", "geoqa.jsonl", "--by", "subject", "seed=3"]
    assert main([*words, "--output", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["with_image"]["mean_length"] <= 4
    assert list(found["by"]) == ["difficulty", "subject"]


def test_an_image_that_cannot_be_read_is_left_out_on_both_sides(inputs, tmp_path, capsys):
    """Its header is fine, so that only decoding finds out."""
    picture = inputs / "pictures" / "half.png"
    random_image(64, 64).save(picture)
    picture.write_bytes(picture.read_bytes()[:2000])
    assert Image.open(picture).size == (64, 64)
    rows = [{"image": f"{name}.png", "question": "?", "answer": "1"} for name in ("half", "0")]
    (inputs / "pictures" / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = run(inputs, tmp_path, "--without-image", data="pictures/data.jsonl")
    assert report["questions"] == 1
    assert "answering: 1 question could not be posed; the first: original variant of data:0" in capsys.readouterr().err


def test_a_text_model_is_measured_too(tmp_path):
    build_tiny_model("qwen2", tmp_path / "model", hidden_size=32)
    (tmp_path / "data.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert load_policy(tmp_path / "model").processor.image_processor is None
    arguments = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl")]
    assert main([*arguments, "data.max_response_length=4"]) == 0


def test_a_checkpoint_is_asked_as_it_was_trained(tmp_path):
    (tmp_path / "policy").mkdir()
    save_config(load_config(["data.max_response_length=9", "data.system_prompt=Think."]), tmp_path / "config.yaml")
    expected = ["data.system_prompt=Think.", "data.max_response_length=9"]
    assert settings_of_checkpoint(tmp_path / "policy") == expected
    assert settings_of_checkpoint(tmp_path) == [], "another folder says nothing"
