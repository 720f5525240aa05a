"""Every format that users have is read as it is."""

from __future__ import annotations

import base64
import json

import pytest

from diva_engine.data.dataset import open_problems
from diva_engine.data.images import load_image
from diva_engine.records import UserError
from python_tests.data.pictures import random_picture, random_png
from python_tests.data.tables import write_jsonl, write_parquet

PNG = random_png()
STRUCT = {"bytes": PNG, "path": None}


# rows of a parquet file -> (text, answer, number of images) of each question
PARQUET = {
    "EasyR1": (
        [
            {"problem": "<image>a", "answer": "1", "images": [STRUCT]},
            {"problem": "<image>b<image>", "answer": "2", "images": [STRUCT, STRUCT]},
            {"problem": "c", "answer": "3", "images": []},
        ],
        [("<image>a", "1", 1), ("<image>b<image>", "2", 2), ("c", "3", 0)],
    ),
    "one struct": ([{"problem": "<image>a", "answer": "1", "images": STRUCT}], [("<image>a", "1", 1)]),
    "one struct, null in a text row": (
        [{"problem": "<image>a", "answer": "1", "images": STRUCT}, {"problem": "b", "answer": "2", "images": None}],
        [("<image>a", "1", 1), ("b", "2", 0)],
    ),
    "plain bytes": ([{"problem": "<image>a", "answer": "1", "images": PNG}], [("<image>a", "1", 1)]),
    "list of bytes": ([{"problem": "<image>a", "answer": "1", "images": [PNG]}], [("<image>a", "1", 1)]),
    "base64": (
        [{"problem": "<image>a", "answer": "1", "image": base64.b64encode(PNG).decode()}],
        [("<image>a", "1", 1)],
    ),
    "paths": ([{"problem": "<image>a", "answer": "1", "images": ["a.png"]}], [("<image>a", "1", 1)]),
    "open-r1": (
        [{"problem": "a", "solution": "<answer> 7 </answer>", "image": STRUCT}],
        [("<image>a", "7", 1)],
    ),
    "verl": (
        [
            {
                "data_source": "geo3k",
                "prompt": [{"role": "user", "content": "<image>a"}],
                "images": [STRUCT],
                "reward_model": {"style": "rule", "ground_truth": "1"},
                "extra_info": {"index": 0},
            }
        ],
        [("<image>a", "1", 1)],
    ),
    "TRL": (
        [{"prompt": [{"role": "user", "content": "a"}], "image": STRUCT, "solution": "so \\boxed{\\frac{1}{2}}"}],
        [("<image>a", "\\frac{1}{2}", 1)],
    ),
    "number as answer": ([{"question": "a", "answer": 3}], [("a", "3", 0)]),
    "GSM8K": ([{"question": "a", "answer": "1 + 1 = 2\n#### 2"}], [("a", "2", 0)]),
}


@pytest.mark.parametrize("case", PARQUET)
def test_parquet_formats(case, tmp_path):
    rows, expected = PARQUET[case]
    (tmp_path / "a.png").write_bytes(PNG)
    problems = open_problems(write_parquet(tmp_path / "train.parquet", rows), on_bad_row="stop")
    assert [(p.text, p.answer, len(p.images)) for p in problems] == expected
    for problem in problems:
        for source in problem.images:
            assert load_image(source).tobytes() == random_picture().tobytes()


JSONL = {
    "geoqa": (
        [{"image_path": "./a.png", "question": "a", "ground_truth": "140°"}],
        [("<image>a", "140°", 1)],
    ),
    "LLaVA": (
        [
            {
                "id": "x",
                "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "1"}],
            }
        ],
        [("<image>\na", "1", 1)],
    ),
    "LLaVA, several images and none": (
        [
            {
                "image": ["a.png", "a.png"],
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "1"}],
            },
            {"conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "2"}]},
        ],
        [("<image><image>a", "1", 2), ("b", "2", 0)],
    ),
    "several questions about an image": (
        [
            {
                "image": "a.png",
                "conversations": [
                    {"from": "human", "value": "<image>a"},
                    {"from": "gpt", "value": "1"},
                    {"from": "human", "value": "b"},
                    {"from": "gpt", "value": "2"},
                ],
            }
        ],
        [("<image>a", "1", 1), ("<image>b", "2", 1)],
    ),
    "ms-swift": (
        [
            {
                "messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "long"}],
                "images": ["a.png"],
                "solution": "1",
            }
        ],
        [("<image>a", "1", 1)],
    ),
    "parts": (
        [
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
                "images": ["a.png"],
                "answer": "1",
            }
        ],
        [("<image>a", "1", 1)],
    ),
    "text and number answers": (
        [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": 2.5}, {"problem": "c", "answer": ["3"]}],
        [("a", "1", 0), ("b", "2.5", 0), ("c", "3", 0)],
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("case", JSONL)
def test_json_formats(case, suffix, tmp_path):
    rows, expected = JSONL[case]
    (tmp_path / "a.png").write_bytes(PNG)
    path = tmp_path / f"train.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        path.write_text(json.dumps(rows))
    problems = open_problems(str(path), on_bad_row="stop")
    assert [(p.text, p.answer, len(p.images)) for p in problems] == expected
    for problem in problems:
        assert all(load_image(source).size == (84, 56) for source in problem.images)


def test_the_columns_of_diva(tmp_path):
    row = {
        "id": 17,
        "problem": "<image>a",
        "answer": "1",
        "images": STRUCT,
        "difficulty": 7,
        "category": "origin_problem",
        "variant": ["<image>b", "c", "<image><image>d", "<image>a"],
        "step2": ["one", "two"],
        "text_in_image": True,
    }
    problems = open_problems(write_parquet(tmp_path / "train.parquet", [row]))
    problem = problems[0]
    assert problem.id == "17"
    assert problem.difficulty == 7.0
    assert problem.paraphrases == ("<image>b", "<image>c")
    assert problem.steps == ("one", "two")
    assert problem.text_in_image is True
    assert problem.extra == {"category": "origin_problem"}
    assert problem.origin == f"{tmp_path}/train.parquet:0"
    assert "  1 paraphrases with another number of <image> markers were left out" in problems.describe()


@pytest.mark.parametrize("wordings", [["<image>b", "<image>c"], "['<image>b', '<image>c']"])
def test_new_questions_of_share_vl(wordings, tmp_path):
    row = {"problem": "<image>a", "answer": "1", "images": [STRUCT], "new_questions": wordings}
    problem = open_problems(write_parquet(tmp_path / "train.parquet", [row]))[0]
    assert problem.paraphrases == ("<image>b", "<image>c")


def test_a_python_list_is_never_executed(tmp_path):
    row = {
        "problem": "a",
        "answer": "1",
        "new_questions": "[__import__('os').system('touch " + str(tmp_path) + "/hit')]",
    }
    with pytest.raises(UserError, match="the paraphrases look like a Python list but cannot be read as one"):
        open_problems(write_jsonl(tmp_path / "train.jsonl", [row]))
    assert not (tmp_path / "hit").exists()


STEPS = {
    "list": (["a", "", "b"], ("a", "b")),
    "null": (None, ()),
    "repr": ("['a', 'b']", ("a", "b")),
    "numbered text": ("Plan.\nStep 1: a\nStep 2:\nb\n", ("a", "b")),
    "lines": ("a\n\nb", ("a", "b")),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_in_every_form(case, tmp_path):
    cell, expected = STEPS[case]
    problem = open_problems(write_jsonl(tmp_path / "a.jsonl", [{"problem": "a", "answer": "1", "step2": cell}]))[0]
    assert problem.steps == expected


def test_llava_cot_by_the_rules_of_hint_grpo(tmp_path):
    reply = (
        "<SUMMARY>s</SUMMARY><CAPTION>c</CAPTION><REASONING>First. Step 1: AB = AC.\nStep 2: so 70.</REASONING>"
        "<CONCLUSION>The answer is B.</CONCLUSION>"
    )
    question = "<image>\nFind the angle at A.\nChoices:\nA. 40°\nB. 70°\nC. 80°"
    rows = [{"id": "g", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}]
    rows[0]["image"] = "a.png"
    problem = open_problems(write_jsonl(tmp_path / "a.jsonl", rows))[0]
    assert problem.text == "<image>\nFind the angle at A."
    assert problem.answer == "70°"
    assert problem.steps == ("AB = AC.", "so 70.")


def test_a_system_message_of_the_chat_is_kept(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    problem = open_problems(write_jsonl(tmp_path / "a.jsonl", [{"prompt": chat, "answer": "1"}]))[0]
    assert (problem.text, problem.extra["system_prompt"]) == ("a", "Be brief.")


DIFFICULTIES = {"int": (3, 3.0), "float": (3.5, 3.5), "text": ("4", 4.0), "word": ("hard", None), "null": (None, None)}
DIFFICULTIES |= {"zero": (0, None), "ten": (10, None), "nan": (float("nan"), None)}


@pytest.mark.parametrize("case", DIFFICULTIES)
def test_difficulties(case, tmp_path):
    cell, expected = DIFFICULTIES[case]
    rows = [{"problem": "a", "answer": "1", "difficulty": cell}]
    problems = open_problems(write_jsonl(tmp_path / "a.jsonl", rows))
    assert problems[0].difficulty == expected
    noted = any("difficulties that are no number in [1, 9]" in line for line in problems.describe())
    assert noted == (expected is None and cell is not None)
