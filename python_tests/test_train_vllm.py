"""The training command with rollouts by vLLM: the same run folder, the same numbers to rounding, and it resumes."""

import json

import pytest
import torch

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.policy.model import load_policy
from diva_engine.settings import load_config
from diva_engine.train import main, train
from python_tests.questions import CHANCE_REWARD
from python_tests.small_runs import small_settings, write_inputs

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, reward=CHANCE_REWARD, hidden_size=128)
    return folder


def words(inputs, run_dir, *extra):
    own = [
        "data.max_response_length=12",
        "worker.rollout.engine=vllm",
        "worker.rollout.kv_cache_memory_bytes=67108864",
        "trainer.save_freq=2",
        "trainer.rollouts_to_log=100",
    ]
    return small_settings(inputs, run_dir, *own, *extra)


def run(inputs, run_dir, *extra):
    return train(load_config(words(inputs, run_dir, *extra), recipe_defaults))


def rows_of(run_dir, name="metrics.jsonl"):
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


RECIPES = {
    "grpo": ["algorithm=grpo"],
    "rescue": ["algorithm=rescue", "rescue.probe=2"],
    "diva": ["algorithm=diva"],
}


@pytest.mark.parametrize("extra", RECIPES.values(), ids=RECIPES)
def test_engine_and_trainer_agree_at_every_step_and_the_weights_move(inputs, tmp_path, extra):
    run(inputs, tmp_path, *extra)
    steps = [row for row in rows_of(tmp_path) if "reward/mean" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    trained = [row for row in steps if row["actor/trained_rollouts"]]
    assert len(trained) >= 2
    for row in trained:
        assert row["sync/logprob_gap_max"] < 1e-4
        assert row["mismatch/ess"] == pytest.approx(1, abs=1e-6)
        assert row["actor/sampler_weight"] == pytest.approx(1, abs=1e-4)
    start, end = (load_policy(p).model for p in (inputs / "model", tmp_path / "checkpoints/global_step_4/policy"))
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True)]
    assert any(moved)


def test_adapters_reach_the_engine_added_to_the_weights(inputs, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft, which make vllm installs: pip install 'diva-engine[lora]'")
    adapters = ["worker.actor.model.lora.rank=4", "trainer.max_steps=3", "trainer.save_freq=3"]
    run(inputs, tmp_path, *adapters, "worker.actor.optim.lr=1e-2", f"data.val_files={inputs / 'train.parquet'}")
    rows = rows_of(tmp_path)
    steps = [row for row in rows if row.get("actor/trained_rollouts")]
    assert len(steps) >= 2
    assert all(row["sync/logprob_gap_max"] < 1e-4 for row in steps)
    assert all(row["sync/validation_gap_max"] < 1e-4 for row in rows if "val/accuracy" in row)
    start, end = (load_policy(p).model for p in (inputs / "model", tmp_path / "checkpoints/global_step_3/policy"))
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert (start.get_parameter(name) - end.get_parameter(name)).abs().max() > 1e-2, "the adapters have moved"


def test_two_steps_and_two_more_ask_and_answer_as_four(inputs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(inputs, whole)
    run(inputs, parts, "trainer.max_steps=2")
    run(inputs, parts, "trainer.load_checkpoint_path=latest")
    texts = [[(row["step"], row["text"]) for row in rows_of(folder, "rollouts.jsonl")] for folder in (whole, parts)]
    assert len(texts[0]) == 4 * 2 * 4
    assert texts[0] == texts[1]
    losses = [[row["actor/loss"] for row in rows_of(folder) if "actor/loss" in row] for folder in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_weights_that_never_reach_the_engine_stop_the_run(inputs, tmp_path, monkeypatch, capsys):
    from diva_engine.rollout.vllm_engine import VllmEngine

    update_weights = VllmEngine.update_weights

    def only_the_first(self, policy_version, weights):
        if policy_version == 0:
            update_weights(self, policy_version, weights)

    monkeypatch.setattr(VllmEngine, "update_weights", only_the_first)
    assert main(words(inputs, tmp_path, "worker.actor.optim.lr=1e-2", "trainer.save_freq=0")) == 2
    message = capsys.readouterr().err
    assert "more than worker.rollout.max_logprob_gap=0.01: the weight sync did not reach the engine" in message
    assert "holds the run as it was before step" in message
