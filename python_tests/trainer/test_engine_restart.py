"""An engine that dies in the middle of its answers is built anew, and the answers are those it would have given."""

from __future__ import annotations

import pytest

from diva_engine.policy.weights import full_weights
from diva_engine.records import GenerationJob, Sampling, UserError
from diva_engine.trainer.engine_restart import RestartedEngine
from diva_engine.trainer.faults import FaultLog, StepFailed
from python_tests.rollout import engines
from python_tests.rollout.engines import ENGINES, open_engine, prompts_of, tiny_policy

FAMILY = "qwen2_5_vl"
SAMPLING = Sampling(max_tokens=8)


class Breaking:
    """Builds real engines, of which the first few die in the middle of decoding, whenever asked."""

    def __init__(self, kind, num_dying):
        self.kind, self.num_dying, self.num_built = kind, num_dying, 0

    def __call__(self):
        engines._KEPT.clear()  # the dead one must be gone before the next
        engine = open_engine(self.kind, tiny_policy(FAMILY))
        self.num_built += 1
        if self.num_built <= self.num_dying:
            self._break(engine)
        return engine

    def _break(self, engine):
        owner, name = (engine, "_record") if self.kind == "native" else (engine._engine, "step")
        work, count = getattr(owner, name), 0

        def dying(*args):
            nonlocal count
            count += 1
            if count % 4 == 0:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return work(*args)

        setattr(owner, name, dying)


def opened(kind, num_dying):
    build, faults = Breaking(kind, num_dying), FaultLog()
    policy = tiny_policy(FAMILY)
    engine = RestartedEngine(build, lambda: full_weights(policy), faults)
    engine.update_weights(7, full_weights(policy))
    return engine, build, faults


@pytest.fixture
def jobs():
    return [GenerationJob(prompt, (1, 2)) for prompt in prompts_of(tiny_policy(FAMILY))]


@pytest.mark.parametrize("kind", ENGINES)
def test_a_dead_engine_is_built_anew_and_answers_the_same(kind, jobs):
    expected = opened(kind, num_dying=0)[0].generate(jobs, SAMPLING)
    engine, build, faults = opened(kind, num_dying=1)
    found = engine.generate(jobs, SAMPLING)
    assert [[r.token_ids for r in group] for group in found] == [[r.token_ids for r in group] for group in expected]
    assert [[r.policy_version for r in group] for group in found] == [[7, 7]] * len(jobs)
    assert build.num_built == 2
    assert faults.take_counts()["rollout/engine_restarts"] == 1.0
    assert len(engine.generate(jobs, SAMPLING)) == len(jobs)


@pytest.mark.parametrize("kind", ENGINES)
def test_once_a_sync_and_no_more(kind, jobs):
    engine, build, _ = opened(kind, num_dying=2)
    with pytest.raises(StepFailed, match=r"failed twice within a step \(RuntimeError: CUDA error"):
        engine.generate(jobs, SAMPLING)
    assert build.num_built == 2


def test_after_the_next_sync_it_may_die_again(jobs):
    engine, build, _ = opened("native", num_dying=2)
    with pytest.raises(StepFailed):
        engine.generate(jobs, SAMPLING)
    engine.update_weights(8, full_weights(tiny_policy(FAMILY)))
    assert engine.generate(jobs, SAMPLING)[0][0].policy_version == 8
    assert build.num_built == 3


def test_what_the_user_can_mend_is_no_reason_to_restart(jobs, monkeypatch):
    engine, build, _ = opened("native", num_dying=0)

    def refuse(*args):
        raise UserError("too long")

    monkeypatch.setattr(engine._engine, "generate", refuse)
    with pytest.raises(UserError, match="too long"):
        engine.generate(jobs, SAMPLING)
    assert build.num_built == 1
