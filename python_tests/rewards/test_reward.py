"""The reward as the trainer calls it: weights, counters, speed, and answers meant to stall it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from diva_engine.config import RewardConfig
from diva_engine.records import Problem, UserError
from diva_engine.rewards.normalization import read_answer
from diva_engine.rewards.pool import Outcome, WorkerPool
from diva_engine.rewards.reward import AnswerReward, build_reward


@pytest.fixture
def reward() -> Iterator[AnswerReward]:
    made = build_reward(time_limit_s=1.0, batch_time_limit_s=2.5)
    assert isinstance(made, AnswerReward)
    yield made
    made.close()


def problem(answer: str) -> Problem:
    return Problem(id="q", text="?", answer=answer)


SCORES = {
    "right and in form": (r"<think>a</think>\boxed{4}", 1.0, 1.0, 1.0),
    "right, no form": (r"\boxed{4}", 0.9, 1.0, 0.0),
    "wrong, in form": (r"<think>a</think>\boxed{5}", 0.1, 0.0, 1.0),
    "neither": ("four, I think", 0.0, 0.0, 0.0),
    "empty": ("", 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(("response", "overall", "accuracy", "form"), SCORES.values(), ids=SCORES)
def test_nine_tenths_accuracy_and_one_tenth_form(
    reward: AnswerReward, response: str, overall: float, accuracy: float, form: float
) -> None:
    (score,) = reward([response], [problem("4")], [3])
    assert (score.reward, score.accuracy, score.format) == (pytest.approx(overall), accuracy, form)


def test_weights_and_tags_are_settings() -> None:
    made = build_reward(
        accuracy_weight=2.0, format_weight=0.5, format_pattern="<answer>.*</answer>", answer_tag="answer"
    )
    (score,) = made([r"<answer>4</answer>"], [problem("4")], [3])
    assert (score.reward, score.accuracy, score.format) == (2.5, 1.0, 1.0)


def test_a_pattern_of_ones_own_is_matched_in_a_worker_and_can_be_stopped() -> None:
    made = build_reward(format_pattern=r"(a|a)*b|yes", time_limit_s=1.0)
    assert [score.format for score in made(["a" * 60, "ab", "yes", "no"], [problem("4")] * 4, [1] * 4)] == [0, 1, 1, 0]
    assert made.take_counters()["timeouts"] == 1
    made.close()


def test_one_pair_is_asked_once_and_counted_each_time(reward: AnswerReward, monkeypatch) -> None:
    """The count is of the answers, whatever the reward remembers: a resumed run remembers nothing."""
    asked = []
    run = reward._pool.run
    monkeypatch.setattr(reward._pool, "run", lambda tasks: asked.extend(tasks) or run(tasks))
    for _ in range(3):
        scores = reward([r"\boxed{(x+1)^2}", r"\boxed{(x+1)^2}"], [problem("x^2+2x+1")] * 2, [1, 1])
        assert [score.accuracy for score in scores] == [1.0, 1.0]
        assert reward.take_counters() == {"algebra": 2, "refused": 0, "timeouts": 0, "errors": 0}
    assert len(asked) == 1
    assert reward.take_counters() == {"algebra": 0, "refused": 0, "timeouts": 0, "errors": 0}


def ordinary_pairs(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    kinds = [
        lambda: (str(rng.randint(-999, 99_999)), str(rng.randint(-999, 99_999))),
        lambda: (f"{rng.random() * 1000:.2f}", str(rng.randint(0, 999))),
        lambda: (f"{rng.randint(1, 99_999):,}", f"{rng.randint(1, 99_999)}.0"),
        lambda: (rf"\text{{({rng.choice('ABCD')})}}", rng.choice("ABCD")),
        lambda: (rf"{rng.randint(0, 3600) / 10}^\circ", f"{rng.randint(0, 360)}°"),
        lambda: (rf"\frac{{{rng.randint(1, 99)}}}{{{rng.randint(2, 99)}}}", f"{rng.random():.4f}"),
        lambda: (rf"{rng.randint(1, 9999)}\text{{ cm}}", str(rng.randint(1, 9999))),
        lambda: (rf"{rng.randint(2, 99)}\sqrt{{{rng.randint(2, 99)}}}", rf"\sqrt{{{rng.randint(2, 9999)}}}"),
    ]
    return [rng.choice(kinds)() for _ in range(count)]


class FailingPool(WorkerPool):
    """Every task ends as `failure` says, or is right."""

    failure = "timeout"

    def run(self, tasks):
        return [Outcome(not self.failure, self.failure) for _ in tasks]


def test_a_pair_out_of_time_is_asked_again_and_memory_is_bounded(reward: AnswerReward, monkeypatch) -> None:
    monkeypatch.setattr("diva_engine.rewards.reward.MAX_REMEMBERED", 2)
    pool = FailingPool(("verifier",))
    monkeypatch.setattr(reward, "_pool", pool)
    pairs = [(rf"\boxed{{x^2 + {i}}}", f"{i} + x^2") for i in range(4)]

    def accuracies(chosen):
        scores = reward([response for response, _ in chosen], [problem(answer) for _, answer in chosen])
        return [score.accuracy for score in scores]

    assert accuracies(pairs) == [0, 0, 0, 0]
    pool.failure = ""
    assert accuracies(pairs) == [1, 1, 1, 1], "a verdict that never came is not remembered"
    pool.failure = "died"
    assert accuracies([pairs[3], pairs[0]]) == [1, 0], "the oldest is forgotten, and can still be asked"


def test_ordinary_answers_need_no_worker_and_go_by_the_thousand(reward: AnswerReward) -> None:
    pairs = ordinary_pairs(4000)
    thought = "<think>" + "Let us add the angles of the picture, one by one. " * 40 + "</think>"
    responses = [rf"{thought} so \boxed{{{answer}}}" for answer, _ in pairs]
    read_answer.cache_clear()
    start = time.process_time()
    reward(responses, [problem(truth) for _, truth in pairs], [500] * len(pairs))
    rate = len(pairs) / (time.process_time() - start)
    assert reward.take_counters() == {"algebra": 0, "refused": 0, "timeouts": 0, "errors": 0}
    assert reward._pool._workers == []
    assert rate > 2000, f"{rate:.0f} answers per CPU second"  # of one core


HOSTILE = [
    "10^{10^{10}}", "9999999999999!", "((9^9)^9)^9^9", "2^{2^{2^{2^{2^{2}}}}}", "x^{x^{x^{x^{x}}}}", r"e^{e^{e^{e^9}}}",
    r"\sum_{k=1}^{99999999} k", r"\prod_{k=1}^{10^9} k", r"\int_0^1 x^{999999} dx", r"\binom{99999999}{4999999}",
    r"\gamma(10^{100})", "(a+b+c+d+e+f+g+h)^{40}", "(1+1)" * 79, "x+y" * 130, "1/" * 190 + "1", "-" * 399,
    r"\frac{" * 100, r"\sqrt" * 80 + "2", "{" * 390, "(" * 200 + "x" + ")" * 199, r"\left(" * 60 + "x", "|" * 390,
    r"\sin(" * 30 + "x" + ")" * 30, r"\begin{pmatrix}" + "1&" * 180 + r"1\end{pmatrix}", "10^{9999}^{3}x",
    "7" * 1_000_000, "x" * 1_000_000, "{" * 1_000_000, r"\boxed{" * 100_000, "\\" * 1_000_000, " " * 1_000_000,
    "\0" * 999, "１０＾{１０＾{１０}}", "\ud800", "\u202e12",
    "½" * 300, "٣" * 399, "ﷺ" * 390, "$" * 399, "1,234" * 70, "A. " * 130, "3:" * 190 + "3",
]  # fmt: skip


def test_hostile_answers_together_cost_no_more_than_the_limit(reward: AnswerReward) -> None:
    reward([r"\boxed{(x+1)^2}"], [problem("x^2+2x+1")], [1])  # starting the workers is no part of the limit
    truths = ["5", "(x+2)^{9}(x+1)^{9}+1", "B", "yes"]
    responses = [rf"\boxed{{{answer}}}" for answer in HOSTILE for _ in truths]
    problems = [problem(truth) for _ in HOSTILE for truth in truths]
    start = time.monotonic()
    scores = reward(responses + HOSTILE, problems + [problem("5")] * len(HOSTILE))
    assert time.monotonic() - start < 2.5 + 8.0  # the limit of a batch, and reading megabytes on a busy machine
    assert sum(score.accuracy for score in scores) == 0
    (right,) = reward([r"\boxed{(y+1)^2}"], [problem("y^2+2y+1")], [1])
    assert right.accuracy == 1.0


BAD = {
    "answer_tag": ("box", r"worker\.reward\.answer_tag is 'box'; it must be boxed, answer or any"),
    "time_limit_s": (0.0, r"worker\.reward\.time_limit_s is 0\.0; it must be a number of seconds above 0"),
    "num_workers": (0, r"worker\.reward\.num_workers is 0; it must be at least 1"),
    "memory_limit_mb": (10, r"worker\.reward\.memory_limit_mb is 10; it must be 0 or at least 256"),
    "reward_type": ("lines", r"worker\.reward\.reward_type is 'lines'; it must be auto, batch, sequential or complet"),
    "on_failure": ("ignore", r"worker\.reward\.on_failure is 'ignore'; it must be stop or score"),
    "format_pattern": ("(", r"format_pattern '\(' is not a regular expression"),
}


@pytest.mark.parametrize(("setting", "value", "message"), [(name, *case) for name, case in BAD.items()], ids=BAD)
def test_a_bad_setting_is_named(setting: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(**{setting: value})  # type: ignore[arg-type]


def test_the_settings_of_a_run_are_the_arguments_here() -> None:
    defaults = {name: value for name, value in vars(RewardConfig()).items() if name != "overlap"}  # the collector's
    assert build_reward.__kwdefaults__ == defaults | {
        "reward_function": None,
        "reward_function_kwargs": None,
    }
    assert defaults.keys() == build_reward.__kwdefaults__.keys()
