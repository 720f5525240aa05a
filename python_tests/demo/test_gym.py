"""Questions drawn from reasoning-gym: the steps add up to the answer, the splits are apart, the images are right."""

from __future__ import annotations

import math
import re
import sys

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from diva_engine.demo import gym
from diva_engine.demo.questions import Question
from diva_engine.records import UserError

SOURCES = {"polygons": gym.Polygons(), "sums": gym.Sums()}


@pytest.fixture(scope="module", params=SOURCES)
def drawn(request: pytest.FixtureRequest) -> dict[str, list[Question]]:
    return gym.draw_questions(SOURCES[request.param], {"train": 8, "test": 8})


def value_of(expression: str) -> int:
    """Of a sum of whole numbers such as "3 - 7 + 2"."""
    return sum(int(term.replace(" ", "")) for term in re.findall(r"[+-]? ?\d+", expression))


def test_levels_come_in_turn_as_many_as_asked(drawn: dict[str, list[Question]]) -> None:
    for questions in drawn.values():
        levels = sorted({question.level for question in questions})
        assert [question.level for question in questions] == levels * 8
        assert [questions[0].difficulty, questions[len(levels) - 1].difficulty] == [1.0, 9.0]


def test_no_question_comes_twice(drawn: dict[str, list[Question]]) -> None:
    images = [question.image.tobytes() for questions in drawn.values() for question in questions]
    assert len(set(images)) == len(images)


def test_each_step_is_right_and_the_last_gives_the_answer(drawn: dict[str, list[Question]]) -> None:
    for question in drawn["train"]:
        total = 0
        for step in question.steps:
            if " = " not in step:  # "the angles sum to 360 ;": what the polygon's steps start from
                continue
            left, right = step.removesuffix(" ;").split(" = ")
            total = value_of(left if left[0].isdigit() else f"{total} {left}")
            assert total == int(right)
        assert str(total) == question.answer


def test_the_wordings_hold_no_number(drawn: dict[str, list[Question]]) -> None:
    for question in drawn["train"]:
        for wording in (question.problem, *question.paraphrases):
            assert not re.search(r"\d", wording)
            assert wording.count("<image>") == 1


def test_every_image_token_is_described(drawn: dict[str, list[Question]]) -> None:
    for question in drawn["train"]:
        assert question.image.width % 28 == 0
        assert len(question.shown) == (question.image.width // 28) ** 2


@pytest.mark.parametrize("angles", [[60, 60, 60], [30, 117, 150, 63], [86, 63, 150, 101, 140]], ids=str)
def test_a_polygon_has_the_angles_that_are_written_at_it(angles: list[int]) -> None:
    corners = gym._corners_about_a_circle(angles)
    for index, angle in enumerate(angles):
        x, y = corners[index]
        before, after = corners[index - 1], corners[(index + 1) % len(corners)]
        turn = math.atan2(before[1] - y, before[0] - x) - math.atan2(after[1] - y, after[0] - x)
        assert math.degrees(turn) % 360 == pytest.approx(angle)


def test_a_missing_reasoning_gym_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match="pip install reasoning-gym"):
        gym.draw_questions(gym.Sums(), {"train": 1})
