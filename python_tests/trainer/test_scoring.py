"""Answers scored while others are generated get the scores, counters and errors that they would have got afterwards."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from diva_engine.policy.weights import full_weights
from diva_engine.records import GenerationJob, Problem, Rollout, Sampling, Score
from diva_engine.rewards import build_reward
from diva_engine.rewards.pool import RewardError
from diva_engine.rollout.calibrated_engine import CalibratedEngine
from diva_engine.rollout.native_engine import NativeEngine
from diva_engine.trainer.engine_restart import RestartedEngine
from diva_engine.trainer.scoring import Scoring
from python_tests.rollout.engines import prompts_of, tiny_policy

FAMILY = "qwen2_5_vl"
SAMPLING = Sampling(max_tokens=24)
PATIENCE_S = 60.0  # after so long nothing will happen any more
ENGINES = {
    "one chunk": lambda policy, processor: NativeEngine(policy.model, processor),
    "chunks that cut jobs": lambda policy, processor: NativeEngine(policy.model, processor, max_batch_rows=4),
    "calibrated": lambda policy, processor: CalibratedEngine(policy.model, processor, gamma=0.5, max_batch_rows=8),
}


class LengthReward:
    """A score that tells every answer, and what was asked in each call; fails on the problems named in `bad`."""

    scores_alone = True

    def __init__(self, bad=()):
        self.bad, self.calls, self.threads = set(bad), [], set()

    def __call__(self, responses, problems, lengths):
        self.calls.append([problem.id for problem in problems])
        self.threads.add(threading.current_thread().name)
        for problem in problems:
            if problem.id in self.bad:
                raise RewardError(f"no score for {problem.id}")
        return [
            Score(length + sum(text.encode()) % 97 / 97, 0.0, 0.0)
            for text, length in zip(responses, lengths, strict=True)
        ]

    def take_counters(self):
        return {}

    def close(self):
        pass


def problems_of(jobs):
    return [Problem(id=f"q{number}", text="?", answer="1") for number in range(len(jobs))]


def soon_ending(policy):
    """Every ninth token ends an answer: most are short, and few as long as others."""
    return dataclasses.replace(
        policy.processor, stop_ids=tuple(range(0, policy.model.config.text_config.vocab_size, 9))
    )


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "rewards"]


@pytest.fixture
def jobs():
    return [GenerationJob(prompt, (1, 2, 3)) for prompt in prompts_of(tiny_policy(FAMILY))]


def scores_of(engine, jobs, reward, is_overlapped):
    with Scoring(reward, problems_of(jobs)) as scoring:
        rollouts = engine.generate(jobs, SAMPLING, scoring.take if is_overlapped else None)
        return rollouts, scoring.finish(rollouts)


@pytest.mark.parametrize("build", ENGINES.values(), ids=ENGINES)
def test_the_scores_are_those_of_one_call_afterwards(build, jobs):
    policy = tiny_policy(FAMILY)
    engine = build(policy, soon_ending(policy))
    early, late = LengthReward(), LengthReward()
    found, expected = scores_of(engine, jobs, early, True), scores_of(engine, jobs, late, False)
    assert found == expected, "rollouts and scores, bit for bit"
    assert len({score.reward for group in found[1] for score in group}) > 4, "the scores tell the answers apart"
    assert late.calls == [["q0"] * 3 + ["q1"] * 3 + ["q2"] * 3 + ["q3"] * 3]
    assert sorted(name for call in early.calls for name in call) == sorted(late.calls[0])
    assert "rewards" in early.threads
    assert late.threads == {"MainThread"}
    assert not alive()


@pytest.mark.parametrize("build", ENGINES.values(), ids=ENGINES)
def test_a_job_is_told_when_its_longest_answer_ends(build, jobs, monkeypatch):
    policy = tiny_policy(FAMILY)
    engine, steps, told = build(policy, soon_ending(policy)), 0, {}
    record = engine._record

    def counting(*args):
        nonlocal steps
        steps += 1
        return record(*args)

    monkeypatch.setattr(engine, "_record", counting)
    rollouts = engine.generate(jobs, SAMPLING, lambda job, found: told.setdefault(job, []).append((steps, found)))
    assert {job: [found for _, found in own] for job, own in told.items()} == dict(enumerate([r] for r in rollouts))
    begun, ends = 0, {}  # decoding steps before a chunk; the step in which each job's last answer ended
    answers = [(job, len(rollout.token_ids)) for job, group in enumerate(rollouts) for rollout in group]
    for start in range(0, len(answers), engine._max_batch_rows):
        chunk = answers[start : start + engine._max_batch_rows]
        for job, length in chunk:
            ends[job] = max(ends.get(job, 0), begun + length)
        begun += max(length for _, length in chunk)
    assert {job: own[0][0] for job, own in told.items()} == ends
    assert len(set(ends.values())) > 1, "no job ended before the others"


def test_the_first_answers_are_being_scored_when_the_last_are_generated(jobs, monkeypatch):
    began = threading.Event()

    class Slow(LengthReward):
        def __call__(self, *args):
            began.set()
            return super().__call__(*args)

    policy = tiny_policy(FAMILY)
    engine = NativeEngine(policy.model, policy.processor, max_batch_rows=3)
    begin, seen = engine._begin, []

    def waiting(*args):
        seen.append(bool(seen) and began.wait(PATIENCE_S))  # the first chunk has nothing to wait for
        return begin(*args)

    monkeypatch.setattr(engine, "_begin", waiting)
    reward = Slow()
    scores_of(engine, jobs, reward, True)
    assert seen == [False, True, True, True]
    assert reward.calls[0] == ["q0"] * 3


def test_what_piles_up_is_scored_in_one_call():
    """So that a pool of workers has enough to do, and a slow reward's limits are met few times."""
    is_open, began = threading.Event(), threading.Event()

    class Blocked(LengthReward):
        def __call__(self, *args):
            began.set()
            assert is_open.wait(PATIENCE_S)
            return super().__call__(*args)

    reward, groups = Blocked(), [[Rollout((1,), (0.0,), "stop", text, 0)] for text in "abcd"]
    with Scoring(reward, problems_of(groups)) as scoring:
        scoring.take(1, groups[1])
        assert began.wait(PATIENCE_S)
        for job in (3, 0, 2):
            scoring.take(job, groups[job])
        is_open.set()
        scores = scoring.finish(groups)
    assert reward.calls == [["q1"], ["q0", "q2", "q3"]]
    assert [len(group) for group in scores] == [1] * 4


@pytest.mark.parametrize("is_overlapped", [True, False])
def test_an_error_comes_once_after_the_answers_with_its_class(jobs, is_overlapped, monkeypatch):
    policy = tiny_policy(FAMILY)
    engine = NativeEngine(policy.model, policy.processor, max_batch_rows=3)
    reward, generate, done = LengthReward(bad=["q0", "q3"]), engine.generate, []
    monkeypatch.setattr(engine, "generate", lambda *args: done.extend(generate(*args)) or done)
    with pytest.raises(RewardError, match="no score for q0"):
        scores_of(engine, jobs, reward, is_overlapped)
    assert [len(group) for group in done] == [3] * 4
    assert len(reward.calls) == 1, "nothing is scored after the first error"
    assert not alive()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_generation_that_breaks_off_leaves_no_thread_and_scores_nothing_more(kind):
    began, is_open = threading.Event(), threading.Event()

    class Blocked(LengthReward):
        def __call__(self, *args):
            began.set()
            assert is_open.wait(PATIENCE_S)
            return super().__call__(*args)

    reward, groups = Blocked(), [[Rollout((1,), (0.0,), "stop", "a", 0)]] * 3

    def break_off():
        with Scoring(reward, problems_of(groups)) as scoring:
            scoring.take(0, groups[0])
            assert began.wait(PATIENCE_S)
            scoring.take(1, groups[1])
            threading.Thread(target=lambda: (_until(lambda: scoring._is_over), is_open.set())).start()
            raise kind

    with pytest.raises(kind):
        break_off()
    assert reward.calls == [["q0"]]
    assert not alive()


def test_an_engine_started_anew_has_no_answer_scored_twice(jobs):
    """It dies in its third chunk, when two jobs are told; the new one tells all four."""
    policy, num_built = tiny_policy(FAMILY), 0

    def build():
        nonlocal num_built
        num_built += 1
        engine = NativeEngine(policy.model, policy.processor, max_batch_rows=3)
        if num_built == 1:
            begin, num_begun = engine._begin, 0

            def dying(*args):
                nonlocal num_begun
                num_begun += 1
                if num_begun == 3:
                    _until(lambda: len(reward.calls) > 0)
                    raise RuntimeError("CUDA error")
                return begin(*args)

            engine._begin = dying
        return engine

    reward = LengthReward()
    engine = RestartedEngine(build, lambda: full_weights(policy))
    found = scores_of(engine, jobs, reward, True)
    assert num_built == 2
    assert sorted(name for call in reward.calls for name in call) == sorted([f"q{i}" for i in range(4)] * 3)
    assert found == scores_of(engine, jobs, LengthReward(), False)


def test_a_stage_asked_again_keeps_the_scores_of_answers_that_are_the_same():
    def groups(texts):
        return [[Rollout((1,), (0.0,), "stop", text, 0)] for text in texts]

    reward, scored = LengthReward(), {}
    for texts in ("abc", "abX", "abX"):
        with Scoring(reward, problems_of(texts), scored) as scoring:
            scores = scoring.finish(groups(texts))
    assert reward.calls == [["q0", "q1", "q2"], ["q2"]]
    assert scores == [tuple(LengthReward()([text], problems_of("a"), [1])) for text in "abX"]


def test_counters_of_algebra_are_those_of_one_call(jobs):
    answers = [r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}", r"\boxed{x}", r"\boxed{10^{10^{10}}}"]
    problems = [Problem(id=str(i), text="?", answer=truth) for i, truth in enumerate(["x^2+2x+1", "(x+1)^2"] * 3)]
    groups = [[Rollout((1,), (0.0,), "stop", text, 0) for text in answers] for _ in problems]
    found = {}
    for is_overlapped in (True, False):
        reward = build_reward(time_limit_s=60.0, batch_time_limit_s=60.0)
        with Scoring(reward, problems) as scoring:
            for job, group in enumerate(groups):
                if is_overlapped:
                    scoring.take(job, group)
                    time.sleep(0.01)
            found[is_overlapped] = scoring.finish(groups), reward.take_counters()
        reward.close()
    assert found[True] == found[False]
    assert found[True][1]["algebra"] > 6
    assert found[True][1]["refused"] == 6


def _until(is_so):
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.001)
