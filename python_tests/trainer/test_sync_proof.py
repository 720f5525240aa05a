"""An engine with a copy of the weights that the last sync did not reach is found out by the last validation."""

import json

import pytest

from diva_engine.records import UserError
from diva_engine.rollout.native_engine import NativeEngine
from diva_engine.trainer.checkpoint import list_checkpoints
from python_tests.questions import CHANCE_REWARD
from python_tests.ranks import on_ranks, train_each
from python_tests.small_runs import small_settings, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_train=4, num_val=3, reward=CHANCE_REWARD)


def settings(inputs, run_dir, *extra):
    fast = ["worker.rollout.n=8", "worker.actor.optim.lr=1e-2", "trainer.max_steps=1"]
    return small_settings(inputs, run_dir, *fast, *extra)


def gaps_of(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row.get("sync/validation_gap_max") for row in rows if "val/accuracy" in row}


def train_and_then_lose_the_last_sync(whole, lost):
    train_each([whole])
    update_weights = NativeEngine.update_weights

    def only_the_first(self, policy_version, weights):
        update_weights(self, policy_version, weights if policy_version == 0 else ())
        for _ in weights:  # each is gathered by all ranks together
            pass

    NativeEngine.update_weights = only_the_first
    with pytest.raises(UserError, match="the weight sync did not reach the engine"):
        train_each([lost])


def test_the_last_validation_proves_the_last_sync(inputs, tmp_path):
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    on_ranks(2, train_and_then_lose_the_last_sync, settings(inputs, whole), settings(inputs, lost))
    gaps = gaps_of(whole)
    assert list(gaps) == [0, 1]
    assert all(0 <= gap < 1e-4 for gap in gaps.values())
    assert list(gaps_of(lost)) == [0], "no accuracy of other weights is reported"
    assert [path.name for path in list_checkpoints(lost)] == ["global_step_1"]


def test_an_engine_on_the_policys_own_weights_needs_no_proof(inputs, tmp_path):
    train_each([settings(inputs, tmp_path)])
    assert gaps_of(tmp_path) == {0: None, 1: None}
