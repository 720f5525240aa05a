"""Lessons, their tensors, and a few steps of the warm-up."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from diva_engine.demo import tiles
from diva_engine.demo.lessons import Lesson, Mixture, draw_lesson, spoil
from diva_engine.demo.model import make_model, make_tokenizer
from diva_engine.demo.vocabulary import ROTATED
from diva_engine.demo.warmup import NO_LABEL, Collator, WarmUp, lesson_loss, warm_up

PLAIN = Mixture(
    listing=0,
    stored=0,
    hinted=0,
    begun=0,
    varied=0,
    levels={1: 1.0, 2: 1.0},
    hinted_levels={3: 1.0},
    begun_levels={4: 1.0},
)
MIXTURES = {
    "plain": replace(PLAIN),
    "hinted": replace(PLAIN, hinted=1),
    "begun": replace(PLAIN, begun=1),
    "varied": replace(PLAIN, varied=1),
    "listing": replace(PLAIN, listing=1),
    "stored": replace(PLAIN, stored=1, stored_questions=tiles.draw_questions("stored", {1: 4})),
}


def lessons_of(kind: str, count: int = 8) -> list[Lesson]:
    rng = random.Random(0)
    return [draw_lesson(MIXTURES[kind], rng) for _ in range(count)]


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_labels_are_the_answer_and_its_end(kind: str) -> None:
    tokenizer = make_tokenizer()
    lessons = lessons_of(kind)
    batch = Collator(tokenizer)(lessons)
    for lesson, labels in zip(lessons, batch.labels, strict=True):
        assert tokenizer.decode(labels[labels != NO_LABEL]) == lesson.answer + " <|im_end|>"
    assert (batch.input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 9 * len(lessons)


def test_a_label_stands_where_its_token_is_predicted() -> None:
    batch = Collator(make_tokenizer())(lessons_of("plain"))
    following = batch.input_ids.roll(-1, dims=1)
    labelled = batch.labels != NO_LABEL
    assert torch.equal(batch.labels[labelled], following[labelled])


def test_a_hinted_question_shows_steps_but_never_the_last() -> None:
    for lesson in lessons_of("hinted"):
        steps = lesson.answer.removeprefix("<think> ").split(" </think>")[0]
        shown = lesson.question.split("the first steps are: ")[1].split("\n")[0]
        assert steps.startswith(shown)
        assert shown != steps


def test_a_begun_answer_lacks_its_last_step_only() -> None:
    tokenizer = make_tokenizer()
    lessons = lessons_of("begun")
    for lesson, ids in zip(lessons, Collator(tokenizer)(lessons).input_ids, strict=True):
        assert lesson.begun.count(";") == 3
        assert lesson.answer.count(";") == 1
        assert f"assistant {lesson.begun} {lesson.answer} <|im_end|>" in tokenizer.decode(ids)


def test_a_rotated_image_is_announced() -> None:
    image = tiles.draw_questions("train", {1: 1})[0].image
    remarks = set()
    for seed in range(20):
        spoilt, remark = spoil(image, random.Random(seed))
        assert spoilt.size == image.size
        assert spoilt.tobytes() != image.tobytes()
        remarks.add(remark)
    assert remarks == {"", ROTATED}


def test_the_losses_of_a_fresh_model_are_those_of_guessing() -> None:
    tokenizer = make_tokenizer()
    answer_loss, binding_loss = lesson_loss(make_model(tokenizer, 0), Collator(tokenizer)(lessons_of("plain")))
    assert 5 < answer_loss.item() < 9  # ln(632) = 6.4
    assert binding_loss.item() > 3  # ln(9) + ln(9) = 4.4 where all is even


def test_some_steps_teach_the_form_alike_every_time() -> None:
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {"first run": [], "second run": []}
    for seen in losses.values():
        tokenizer = make_tokenizer()
        plan = WarmUp(MIXTURES["plain"], steps=16, batch_size=4)
        warm_up(make_model(tokenizer, 0), tokenizer, plan, lambda _, loss, seen=seen: seen.append(loss))
    assert losses["first run"] == losses["second run"]
    assert losses["first run"][-1] < losses["first run"][0] - 0.5
