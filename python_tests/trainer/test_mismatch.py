"""Trainer and sampler beside each other: the numbers, the bound, and what settings may not be combined."""

import math

import pytest
import torch

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.policy.model import load_policy
from diva_engine.records import Credit, UserError
from diva_engine.settings import build_config
from diva_engine.trainer.faults import StepFailed
from diva_engine.trainer.mismatch import mismatch_metrics
from diva_engine.trainer.update import Updater
from python_tests.models import build_tiny_model
from python_tests.scored import ANY_LOGPROBS, make_group

NAMES = ("sync/logprob_gap_mean", "sync/logprob_gap_max")
NAMES += tuple(f"mismatch/{name}" for name in ("ratio_mean", "ratio_max", "ess", "kl_k1", "kl_k3"))
LOG2, LOG3 = math.log(2), math.log(3)
TABLE = {
    "agreement": ([0.0, 0.0], [0, 0, 1, 1, 1, 0, 0]),
    "a prefix token left out": ([math.nan, 0.0, LOG3], [LOG3 / 2, LOG3, 2, 3, 4 / 5, -LOG3 / 2, (2 - LOG3) / 2]),
    "the other way": ([-LOG2, 0.0], [LOG2 / 2, LOG2, 0.75, 1, 0.9, LOG2 / 2, (LOG2 - 0.5) / 2]),
    "only prefix tokens": ([math.nan], []),
}


@pytest.mark.parametrize(("log_ratio", "expected"), TABLE.values(), ids=TABLE)
def test_the_numbers(log_ratio, expected):
    found = mismatch_metrics(torch.tensor(log_ratio, dtype=torch.float64))
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=False)), abs=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model("qwen2", tmp_path_factory.mktemp("model"), hidden_size=32)


def update(folder, **settings):
    """One update on answers whose log-probabilities are made up: -1 a token."""
    policy = load_policy(folder)
    config = build_config({"worker.actor.optim.lr": 0.1, **settings})
    updater = Updater(policy, clipped_policy_loss, config, num_steps=1)
    before = [parameter.clone() for parameter in policy.model.parameters()]
    try:
        return updater.update([make_group([1.0, 0.0])], Credit(torch.tensor([1.0, -1.0]), torch.zeros(1)))
    except StepFailed:
        assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
        raise


def test_a_step_on_which_sampler_and_trainer_disagree_is_not_taken(folder):
    words = r"differs by \d.*more than worker\.rollout\.max_logprob_gap=0\.01: the weight sync did not reach"
    with pytest.raises(StepFailed, match=words):
        update(folder)


def test_the_bound_can_be_raised_and_taken_off(folder):
    gap = update(folder, **ANY_LOGPROBS)["sync/logprob_gap_max"]
    assert update(folder, **{"worker.rollout.max_logprob_gap": gap + 0.1})["sync/logprob_gap_max"] == gap
    with pytest.raises(StepFailed, match="differs by"):
        update(folder, **{"worker.rollout.max_logprob_gap": gap - 0.1})


def test_with_truncation_no_token_weighs_more_than_it(folder):
    metrics = update(folder, **ANY_LOGPROBS, **{"worker.actor.importance_truncation": 1e-3})
    assert 0 < metrics["actor/sampler_weight"] <= 1e-3 * (1 + 1e-6)
    assert metrics["actor/sampler_truncated"] > 0
    assert "actor/sampler_weight" not in update(folder, **ANY_LOGPROBS)


DEFAULTS = {
    "native": ("native", "float32", 0.0, 0.01),
    "vllm": ("vllm", "float32", 2.0, 0.01),
    "vllm in bfloat16": ("vllm", "bfloat16", 2.0, 5.0),
}


@pytest.mark.parametrize(("engine", "dtype", "truncation", "gap"), DEFAULTS.values(), ids=DEFAULTS)
def test_defaults_follow_engine_and_type(engine, dtype, truncation, gap):
    values = {"worker.rollout.engine": engine, "worker.actor.model.torch_dtype": dtype}
    worker = build_config(values).worker
    assert (worker.importance_truncation, worker.max_logprob_gap) == (truncation, gap)
    worker = build_config(values | {"worker.actor.importance_truncation": 1.5} | ANY_LOGPROBS).worker
    assert (worker.importance_truncation, worker.max_logprob_gap) == (1.5, 0.0)


TOP_P = {"worker.rollout.top_p": 0.9}
VLLM = {"worker.rollout.engine": "vllm"}
UNCORRECTED = {"worker.actor.importance_truncation": 0.0}
REFUSED = {
    "vllm, which corrects": (VLLM, "no importance weight.*importance_truncation=0"),
    "native, asked to correct": ({"worker.actor.importance_truncation": 2.0}, "no importance weight"),
    "vllm with a bound": (VLLM | UNCORRECTED, "cut distribution.*max_logprob_gap=0"),
}


@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_nucleus_sampling_is_refused_where_log_probabilities_must_be_those_of_the_draw(values, words):
    with pytest.raises(UserError, match=words):
        build_config(TOP_P | values)


def test_a_temperature_that_vllm_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"temperature=2\.5: vllm takes 2 at most"):
        build_config(VLLM | {"worker.rollout.temperature": 2.5})


def test_nucleus_sampling_is_taken_where_nothing_is_corrected():
    build_config(TOP_P)
    build_config(TOP_P | VLLM | UNCORRECTED | ANY_LOGPROBS)
