"""The regimes' questions, the teacher that errs, bad references, and the reward."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from bench.learn.bases import BASES, EASY, UNKNOWN_TAUGHT
from bench.learn.regimes import REGIMES, held_out_problems, to_problem, train_problems
from bench.learn.rewards import DerivationReward
from bench.learn.robustness import REFERENCES
from diva_engine.demo import tiles
from diva_engine.demo.lessons import Mixture, draw_lesson


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("ladder", {1: 16, 2: 16, 3: 16, 4: 16, 5: 16, 6: 16}),
        ("gap", {1: 16, 2: 16, 3: 16, 7: 48}),
        ("saturated", {1: 20, 2: 30, 3: 19, 4: 9, 5: 9, 6: 9}),
        ("untrained", {1: 20, 2: 19, 3: 19, 4: 19, 5: 19}),
    ],
)
def test_a_regime_trains_on_its_mixture_of_levels(name, shares):
    problems = train_problems(REGIMES[name], seed=3)
    assert Counter(problem.extra["level"] for problem in problems) == shares
    assert all(problem.difficulty is None for problem in problems), "the methods are not told the level"
    assert len({problem.id for problem in problems}) == len(problems)


def test_seeds_train_on_other_questions_and_are_measured_on_the_same():
    regime = REGIMES["ladder"]
    texts = [{problem.text for problem in train_problems(regime, seed)} for seed in (0, 1)]
    assert len(texts[0] & texts[1]) < 20  # level 1 has few wordings; their pictures differ
    held_out = held_out_problems(regime)
    assert held_out == held_out_problems(regime)
    assert Counter(problem.extra["level"] for problem in held_out) == dict.fromkeys(range(1, 7), 32)
    assert Counter(p.extra["level"] for p in held_out_problems(REGIMES["untrained"]))[6] == 32


def test_the_unknown_term_stands_at_the_end_and_in_no_picture():
    question = tiles.draw_question(tiles.UNKNOWN_LEVEL, random.Random(0))
    assert question.problem.endswith(" + unknown modulo 20?")
    assert len(question.steps) == 7
    before = int(question.steps[-2].split()[-2])
    assert question.steps[-1] == f"unknown = {(before + tiles.UNKNOWN) % tiles.MODULUS} ;"
    assert question.answer == question.steps[-1].split()[-2]


def lessons(count=400, **settings):
    rng = random.Random(1)
    mixture = Mixture(
        **{**vars(EASY), "listing": 0.0, "hinted": 0.0, "begun": 0.0, "varied": 0.0, "levels": {3: 1}, **settings}
    )
    return [draw_lesson(mixture, rng) for _ in range(count)]


def is_right(lesson):
    seen = dict(lesson.shown)
    words = f"{lesson.begun} {lesson.answer}".split()
    return [number == seen[colour] for colour, number in pairwise(words) if colour in seen]


def test_a_teacher_that_errs_miscounts_the_steps_that_are_not_given():
    assert all(all(is_right(lesson)) for lesson in lessons())
    plain = [right for lesson in lessons(noise=0.5) for right in is_right(lesson)]
    assert sum(plain) / len(plain) == pytest.approx(0.5 + 0.5 / 9, abs=0.05), "one wrong count in nine is right by luck"
    begun = lessons(noise=1.0, begun=1.0, begun_levels={6: 1}, own_steps=4)
    given = Counter(lesson.begun.count(";") for lesson in begun)
    assert set(given) == {2, 3, 4, 5}
    assert all(all(is_right(replace(lesson, answer=""))) for lesson in begun)


def test_a_hurried_teacher_stops_after_three_tiles_unless_the_answer_was_begun():
    assert {lesson.answer.count(";") for lesson in lessons(levels={2: 1, 6: 1}, longest=3)} == {2, 3}
    begun = lessons(begun=1.0, begun_levels={6: 1}, longest=3)
    assert {(lesson.begun.count(";"), lesson.answer.count(";")) for lesson in begun} == {(5, 1)}


def test_the_teacher_of_gap_mostly_takes_the_unknown_for_five():
    taught = Counter()
    for lesson in lessons(levels={7: 1}, unknown_taught=UNKNOWN_TAUGHT):
        words = lesson.answer.split()
        last = words.index("unknown")
        taught[(int(words[last + 2]) - int(words[last - 2])) % 20] += 1
    assert taught.most_common(1)[0][0] == 5
    assert taught[tiles.UNKNOWN] / 400 == pytest.approx(UNKNOWN_TAUGHT[3], abs=0.05)


def test_every_regime_has_a_base():
    assert {regime.base for regime in REGIMES.values()} | {base.start for base in BASES.values()} == {*BASES, ""}


def problem(level=3):
    return to_problem(tiles.draw_question(level, random.Random(level), "q"))


def test_right_is_the_whole_derivation_or_with_answer_only_the_number():
    asked = problem()
    solution = asked.extra["solution"]
    other_number = str((int(asked.answer) + 1) % 20)
    texts = [
        solution,
        f"<think> 1 + red 1 = 2 ; </think> \\boxed{{ {asked.answer} }}",
        f"<think> 1 + red 1 = 2 ; </think> \\boxed{{ {other_number} }}",
        solution.removesuffix(" }"),
    ]
    scored = {
        answer_only: [
            (s.accuracy, s.format, round(s.reward, 6))
            for s in DerivationReward(answer_only)(texts, [asked] * 4, [9] * 4)
        ]
        for answer_only in (False, True)
    }
    assert scored[False] == [(1, 1, 1), (0, 1, 0.1), (0, 1, 0.1), (0, 0, 0)]
    assert scored[True] == [(1, 1, 1), (1, 1, 1), (0, 1, 0.1), (0, 0, 0)]


def test_bad_references():
    asked = problem()
    paraphrased, long = REFERENCES["paraphrased"](asked), REFERENCES["long"](asked)
    colour, count, total = asked.steps[1].split()[0], asked.steps[1].split()[1], asked.steps[1].split()[3]
    assert paraphrased.steps[1] == f"count {colour} : {count} . the sum is {total} ;"
    assert long.steps[1] == " ".join([asked.steps[1]] * 4)
    assert REFERENCES["clean"](asked) is asked
    problems = train_problems(REGIMES["ladder"], seed=0, count=200)
    spoilt = [REFERENCES["wrong"](p) for p in problems]
    changed = [new.steps != old.steps for new, old in zip(spoilt, problems, strict=True)]
    assert sum(changed) / 200 == pytest.approx(0.4, abs=0.08)
    assert all(new.extra == old.extra and new.answer == old.answer for new, old in zip(spoilt, problems, strict=True))
