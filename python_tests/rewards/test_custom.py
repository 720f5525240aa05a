"""Reward files of users: EasyR1's and TRL's interfaces, and every way in which a file can misbehave."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from diva_engine.records import Problem, Score, UserError
from diva_engine.rewards.pool import RewardError
from diva_engine.rewards.reward import build_reward

Build = Callable[..., Any]

PROBLEMS = [Problem(id=f"q{i}", text=f"{i} + 1?", answer=str(i + 1), extra={"topic": "sums"}) for i in range(4)]
RESPONSES = [r"\boxed{1}", r"\boxed{2}", r"\boxed{0}", "BAD"]  # right, right, wrong, and the one files stumble over


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    made = []

    def make(code: str, function: str = "compute_score", **settings: Any) -> Any:
        path = tmp_path / "reward.py"
        path.write_text(textwrap.dedent(code))
        made.append(build_reward(reward_function=f"{path}:{function}", **settings))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def overall(scores: Sequence[Score]) -> list[float]:
    return [score.reward for score in scores]


EASYR1_BATCH = """
    import re

    REWARD_TYPE = "batch"

    def compute_score(reward_inputs, format_weight=0.1):
        if not isinstance(reward_inputs, list):
            raise ValueError("Please use `reward_type=batch`.")
        scores = []
        for reward_input in reward_inputs:
            boxed = re.search(r"boxed{(.*)}", reward_input["response"])
            accuracy = 1.0 if boxed and boxed.group(1) == reward_input["ground_truth"] else 0.0
            scores.append({"overall": (1 - format_weight) * accuracy, "format": 0.0, "accuracy": accuracy,
                           "length": float(reward_input["response_length"])})
        return scores
"""

EASYR1_SEQUENTIAL = """
    def compute_score(reward_input: dict, format_weight: float = 0.5) -> dict:
        if not isinstance(reward_input, dict):
            raise ValueError("Please use `reward_type=sequential`.")
        is_right = reward_input["ground_truth"] in reward_input["response"]
        return {"overall": 2.0 * is_right - 1.0, "overlong": 0.25}
"""

TRL = """
    def compute_score(prompts, completions, solution, topic, **kwargs):
        assert len(prompts) == len(solution) and set(topic) == {"sums"}
        return [1.0 if gold in completion[0]["content"] else 0.25 for completion, gold in zip(completions, solution)]
"""


def test_an_easyr1_batch_file_works_unchanged(build: Build) -> None:
    reward = build(EASYR1_BATCH, reward_function_kwargs={"format_weight": 0.2})
    scores = reward(RESPONSES, PROBLEMS, response_lengths=[7, 8, 9, 10])
    assert overall(scores) == [0.8, 0.8, 0.0, 0.0]
    assert [score.accuracy for score in scores] == [1.0, 1.0, 0.0, 0.0]
    assert [score.extra for score in scores] == [{"length": float(length)} for length in (7, 8, 9, 10)]


def test_an_easyr1_sequential_file_works_unchanged(build: Build) -> None:
    scores = build(EASYR1_SEQUENTIAL)(RESPONSES, PROBLEMS)
    assert overall(scores) == [1.0, 1.0, -1.0, -1.0]
    assert [score.accuracy for score in scores] == [1.0, 1.0, 0.0, 0.0]  # no accuracy given: overall from 0.5 on
    assert scores[0].extra == {"overlong": 0.25}


def test_a_trl_function_works_unchanged(build: Build) -> None:
    scores = build(TRL)(RESPONSES, PROBLEMS)
    assert overall(scores) == [1.0, 1.0, 0.25, 0.25]
    assert [score.accuracy for score in scores] == [1.0, 1.0, 0.0, 0.0]


def test_format_is_ours_where_the_file_gives_none_and_accuracy_is_kept_in_bounds(build: Build) -> None:
    reward = build("def compute_score(items):\n    return [{'overall': 3.0, 'accuracy': -1} for _ in items]\n")
    (score,) = reward([r"<think>a</think>\boxed{1}"], PROBLEMS[:1])
    assert (score.reward, score.accuracy, score.format) == (3.0, 0.0, 1.0)


def test_numbers_of_other_kinds_become_floats(build: Build) -> None:
    code = "import numpy\ndef compute_score(items):\n    return [{'overall': numpy.float32(0.5), 'ok': True}] * 4\n"
    scores = build(code)(RESPONSES, PROBLEMS)
    assert (scores[0].reward, scores[0].extra) == (0.5, {"ok": 1.0})


def test_no_answers_are_no_call(build: Build) -> None:
    assert build("def compute_score(items):\n    raise ValueError\n")([], []) == []


# Files that fail on the item "BAD" only.
STUMBLES = {
    "raises": ("raise KeyError('nothing here')", r"KeyError: 'nothing here' \(line 4\)"),
    "exits": ("raise SystemExit(0)", "SystemExit: 0"),
    "dies": ("os._exit(7)", "its worker process ended with exit code 7"),
    "crashes": ("os.kill(os.getpid(), 11)", "its worker process ended with signal 11"),
    "recurses": ("f = lambda: f(); f()", "RecursionError"),
    "eats memory": ("bytearray(1 << 34)", "MemoryError"),
    "closes its files": ("os.closerange(3, 100)", "its worker process ended"),
}
HANGS = r"on the whole batch: no result within 2 s; raise time_limit_s or batch_time_limit_s"
# What the file does on any call; what the error says; the scores with failed_score=-2, None where all fail.
BATCH = {
    "hangs": ("time.sleep(99)", HANGS, None),
    "spins in C": ("10 ** 10 ** 10", HANGS, None),
    "NaN": ("return [1.0, 1.0, float('nan'), 1.0]", r"on item 2 \(problem q2\): overall is nan", [1, 1, -2, 1]),
    "infinite": ("return [float('inf')] * 4", r"on item 0 \(problem q0\): overall is inf", None),
    "a string": ("return [1.0, 'good', 1.0, 1.0]", r"on item 1 .*overall is 'good', not a number", [1, -2, 1, 1]),
    "None": ("return [1.0, None, 1.0, 1.0]", r"on item 1 .*overall is None, not a number", [1, -2, 1, 1]),
    "no overall": ("return [{'score': 1.0}] * 4", r"on item 0 .*no key overall; it has score", None),
    "a bad extra": ("return [{'overall': 1, 'why': 'x'}] * 4", r"on item 0 .*why is 'x', not a number", None),
    "too few": ("return [1.0] * 3", r"on the whole batch: ValueError: it returned 3 results for 4 items", None),
    "no list": ("return 1.0", r"on item 0 .*TypeError: it returned float, not a list", None),
    "nothing": ("pass", r"on item 0 .*TypeError: it returned NoneType, not a list", None),
    "an object": ("return [object()] * 4", r"on item 0 .*overall is <object object at .*, not a number", None),
}


@pytest.mark.parametrize(("body", "message", "scores"), BATCH.values(), ids=BATCH)
def test_a_file_that_misbehaves(build: Build, body: str, message: str, scores: list[float] | None) -> None:
    settings = {"batch_time_limit_s": 2.0, "time_limit_s": 2.0}
    code = f"import os, time\ndef compute_score(items):\n    {body}\n"
    with pytest.raises(
        RewardError, match=rf"reward function reward\.py:compute_score failed {message}.*on_failure=score"
    ):
        build(code, **settings)(RESPONSES, PROBLEMS)
    tolerant = build(code, on_failure="score", failed_score=-2.0, **settings)
    start = time.monotonic()
    assert overall(tolerant(RESPONSES, PROBLEMS)) == (scores or [-2.0] * 4)
    assert time.monotonic() - start < 12.0
    counters = tolerant.take_counters()
    assert counters["timeouts"] + counters["errors"] == (scores or [-2.0] * 4).count(-2.0)
    assert tolerant.take_counters() == {"timeouts": 0, "errors": 0}


@pytest.mark.parametrize(("deed", "message"), STUMBLES.values(), ids=STUMBLES)
def test_one_bad_item_of_a_batch_costs_only_itself(build: Build, deed: str, message: str) -> None:
    code = "import os\ndef compute_score(items):\n    if any(item['response'] == 'BAD' for item in items):\n"
    code += f"        {deed}\n    return [1.0] * len(items)\n"
    with pytest.raises(RewardError, match=rf"failed on item 3 \(problem q3\): {message}.*on_failure=score"):
        build(code)(RESPONSES, PROBLEMS)
    tolerant = build(code, on_failure="score", failed_score=-2.0)
    assert overall(tolerant(RESPONSES, PROBLEMS)) == [1.0, 1.0, 1.0, -2.0]
    assert tolerant.take_counters() == {"timeouts": 0, "errors": 1}


def test_one_hanging_item_of_a_sequential_file_costs_only_itself(build: Build) -> None:
    code = """
        import time
        def compute_score(reward_input):
            time.sleep(99 if reward_input["response"] == "BAD" else 0)
            return {"overall": 1.0}
    """
    scores = build(code, time_limit_s=1.0, on_failure="score")(RESPONSES, PROBLEMS)
    assert overall(scores) == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(RewardError, match=r"on an answer \(problem q3\): no result within 1 s; raise time_limit_s"):
        build(code, time_limit_s=1.0)(RESPONSES, PROBLEMS)


def test_a_flood_of_prints_and_lingering_children_do_no_harm(build: Build, capfd: pytest.CaptureFixture[str]) -> None:
    code = """
        import subprocess
        def compute_score(items):
            print("x" * 200_000)
            subprocess.Popen(["sleep", "60"])
            return [1.0] * len(items)
    """
    reward = build(code)
    assert overall(reward(RESPONSES, PROBLEMS)) == [1.0] * 4
    assert capfd.readouterr().out == ""  # what a file prints goes to stderr: stdout is the table's


DOORS = {
    "no such file": ("nowhere/r.py:f", None, r"there is no file nowhere/r\.py; write path/to/file\.py:function"),
    "not Python": ("{}:f", "def f(:", r"is not valid Python: invalid syntax"),
    "no such function": ("{}:g", "def f(items): ...", r"has no function g; it has f"),
    "no function named, no main": ("{}", "def f(items): ...", r"has no function main; it has f"),
    "its import fails": ("{}:f", "import no_such_module\ndef f(items): ...", r"cannot be loaded: ModuleNotFoundError"),
    "its import exits": ("{}:f", "raise SystemExit\ndef f(items): ...", r"cannot be loaded: SystemExit"),
    "its import dies": ("{}:f", "import os\nos._exit(3)\ndef f(items): ...", r"cannot be loaded: .*exit code 3"),
    "a number by that name": ("{}:f", "f = 3", r"cannot be loaded: TypeError: f is no function"),
}  # fmt: skip


@pytest.mark.parametrize(("setting", "code", "message"), DOORS.values(), ids=DOORS)
def test_a_file_that_cannot_be_used_is_refused_at_the_door(
    tmp_path: Path, setting: str, code: str | None, message: str
) -> None:
    path = tmp_path / "r.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(UserError, match=message):
        build_reward(reward_function=setting.format(path))


def test_a_file_is_not_run_in_the_trainer(build: Build) -> None:
    code = "import os\ndef compute_score(items):\n    return [float(os.readlink('/proc/self'))] * len(items)\n"
    (found,) = overall(build(code)(RESPONSES[:1], PROBLEMS[:1]))
    assert found not in (0.0, float(os.getpid()))
