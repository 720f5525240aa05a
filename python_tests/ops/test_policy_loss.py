from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diva_engine.ops import PolicyLossMetrics, policy_loss
from diva_engine.ops.policy_loss import policy_loss_reference
from python_tests.ops import ragged

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}

# Every branch of the loss, by name. True stands for a tensor drawn with the batch.
SETTINGS = {
    "plain": {},
    "clip higher": {"clip_low": 0.2, "clip_high": 0.28},
    "dual clip": {"clip_dual": 1.5},
    "gspo": {"ratio": "sequence", "aggregation": "sequence_mean", "clip_low": 0.03, "clip_high": 0.04},
    "gspo over tokens": {"ratio": "sequence", "clip_dual": 1.1},
    "cispo": {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.3},
    "sapo": {"loss": "sapo"},
    "sapo taus": {"loss": "sapo", "tau_positive": 2.0, "tau_negative": 3.0, "ratio": "sequence"},
    "sequence mean": {"aggregation": "sequence_mean"},
    "dr grpo": {"aggregation": "constant", "divisor": 4096.0},
    "kl k1": {"ref_logprob": True, "kl": "k1", "kl_coef": 0.1},
    "kl k2": {"ref_logprob": True, "kl": "k2", "kl_coef": 0.1},
    "kl k3": {"ref_logprob": True, "kl": "k3", "kl_coef": 0.1},
    "kl as a metric": {"ref_logprob": True},
    "sampler weight": {"sampler_logprob": True, "truncation": 1.2},
    "all at once": {
        "ref_logprob": True, "kl_coef": 0.01, "sampler_logprob": True, "clip_dual": 3.0, "ratio": "sequence",
        "aggregation": "sequence_mean", "divisor": 7.0,
    },
}  # fmt: skip
SIZES = ragged.SIZES | {"one token": [1], "around a chunk": [8191, 0, 2, 8193]}


def batch(sizes: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Log-probabilities some of whose ratios leave every clip range, advantages of which a third are 0."""
    offsets = ragged.offsets_of(sizes)
    generator = torch.Generator().manual_seed(seed)
    count = int(offsets[-1])
    logprob, old, ref, sampler = -torch.rand(count, generator=generator).mul(3) + 0.4 * torch.randn(
        4, count, generator=generator
    )
    advantage = torch.randn(count, generator=generator) * (torch.rand(count, generator=generator) > 1 / 3)
    tensors = {
        "logprob": logprob,
        "old_logprob": old,
        "advantage": advantage,
        "ref_logprob": ref,
        "sampler_logprob": torch.where(torch.rand(count, generator=generator) < 0.1, math.nan, sampler),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()} | {"offsets": offsets}


def call(function, tensors: dict[str, Tensor], chosen: dict):
    """loss, gradient and totals of `function` on the batch."""
    logprob = tensors["logprob"].clone().requires_grad_()
    drawn = {name: tensors[name] for name, value in chosen.items() if value is True}
    rest = [tensors[name] for name in ("old_logprob", "advantage", "offsets")]
    loss, metrics = function(logprob, *rest, **(chosen | drawn))
    loss.backward()
    return loss.detach(), logprob.grad, metrics.totals


def assert_equal_results(got, want, tolerance: float) -> None:
    for name, a, b in zip(("loss", "gradient", "totals"), got, want, strict=True):
        same = torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert same, f"{name}: {a} is not {b}"


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chosen", SETTINGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_definition(sizes, chosen, dtype):
    tensors = batch(SIZES[sizes], seed=1, dtype=dtype)
    got = call(policy_loss, tensors, SETTINGS[chosen])
    want = call(policy_loss_reference, tensors, SETTINGS[chosen])
    assert_equal_results(got, want, TOLERANCE[dtype])


@settings(max_examples=80, deadline=None)
@given(
    sizes=ragged.sizes,
    seed=st.integers(0, 2**31),
    loss=st.sampled_from(["ppo", "cispo", "sapo"]),
    ratio=st.sampled_from(["token", "sequence"]),
    aggregation=st.sampled_from(["token_mean", "sequence_mean"]),
    clip_dual=st.sampled_from([None, 1.1, 3.0]),
    drawn=st.sets(st.sampled_from(["ref_logprob", "sampler_logprob"])),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_equals_the_definition_on_any_batch(sizes, seed, loss, ratio, aggregation, clip_dual, drawn, scale):
    tensors = batch(sizes, seed)
    tensors["logprob"] *= scale
    chosen = {"loss": loss, "ratio": ratio, "aggregation": aggregation, "clip_dual": clip_dual, "kl_coef": 0.1}
    chosen |= dict.fromkeys(drawn, True)
    got, want = call(policy_loss, tensors, chosen), call(policy_loss_reference, tensors, chosen)
    assert_equal_results(got, want, 1e-9)


# One sequence of three tokens, worked out by hand: ratios 1.5, 1.0, 0.5.
LOG_RATIO = [math.log(1.5), 0.0, math.log(0.5)]
BY_HAND = {
    # settings, advantages -> loss of the sum, gradient
    "clipped above and free": ({}, [1.0, 1.0, 1.0], -(1.2 + 1.0 + 0.5), [0.0, -1.0, -0.5]),
    "clipped below": ({}, [-1.0, -1.0, -1.0], 1.5 + 1.0 + 0.8, [1.5, 1.0, 0.0]),
    "dual": ({"clip_dual": 1.4}, [-1.0, -1.0, -1.0], 1.4 + 1.0 + 0.8, [0.0, 1.0, 0.0]),
    "cispo": ({"loss": "cispo"}, [1.0, 1.0, -1.0], -(1.2 * LOG_RATIO[0]) + 0.8 * LOG_RATIO[2], [-1.2, -1.0, 0.8]),
    "sapo at ratio one": ({"loss": "sapo"}, [0.0, 1.0, 0.0], -2.0, [0.0, -1.0, 0.0]),
    "nothing to learn": ({}, [0.0, 0.0, 0.0], 0.0, [0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("function", [policy_loss, policy_loss_reference])
def test_known_values(name, function):
    chosen, advantage, loss, gradient = BY_HAND[name]
    logprob = torch.tensor(LOG_RATIO, dtype=torch.float64, requires_grad=True)
    zeros, offsets = torch.zeros(3, dtype=torch.float64), torch.tensor([0, 3])
    result = function(logprob, zeros, torch.tensor(advantage).double(), offsets, divisor=1.0, **chosen)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert logprob.grad.tolist() == pytest.approx(gradient, abs=1e-12)


# Where no quantity is held constant the gradient must be that of the loss itself.
SMOOTH = {
    "plain": {},
    "dual": {"clip_dual": 1.3},
    "sapo": {"loss": "sapo"},
    "sequence mean and k3": {"aggregation": "sequence_mean", "ref_logprob": True, "kl_coef": 0.5},
    "k2 and weight": {"ref_logprob": True, "kl": "k2", "kl_coef": 0.5, "sampler_logprob": True},
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_is_the_derivative(name):
    tensors = batch([3, 0, 5, 1], seed=3)
    chosen = {key: tensors[key] if value is True else value for key, value in SMOOTH[name].items()}
    rest = [tensors[key] for key in ("old_logprob", "advantage", "offsets")]
    logprob = tensors["logprob"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, *rest, **chosen).loss, (logprob,), eps=1e-7)


def test_sequence_ratio_is_gspo_where_a_sequence_has_one_advantage():
    tensors = batch([3, 5, 2], seed=4)
    advantage = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).repeat_interleave(torch.tensor([3, 5, 2]))
    logprob = tensors["logprob"].requires_grad_()
    chosen = {"ratio": "sequence", "aggregation": "sequence_mean", "clip_low": 5.0, "clip_high": 5.0}
    arguments = (tensors["old_logprob"], advantage, tensors["offsets"])
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, *arguments, **chosen).loss, (logprob,))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_micro_batches_add_up(aggregation):
    sizes = [4, 0, 9, 33, 1, 7]
    tensors = batch(sizes, seed=5)
    whole = call(policy_loss, tensors, {"aggregation": aggregation, "sampler_logprob": True})
    divisor = float(sum(sizes) if aggregation == "token_mean" else len(sizes))
    loss, gradients, metrics = 0.0, [], []
    for first, last in ((0, 2), (2, 4), (4, 6)):
        begin, end = int(tensors["offsets"][first]), int(tensors["offsets"][last])
        part = {name: tensor[begin:end] for name, tensor in tensors.items() if name != "offsets"}
        part["offsets"] = tensors["offsets"][first : last + 1] - begin
        result = call(policy_loss, part, {"aggregation": aggregation, "sampler_logprob": True, "divisor": divisor})
        loss += result[0]
        gradients.append(result[1])
        metrics.append(PolicyLossMetrics(result[2]))
    merged = PolicyLossMetrics.merge(metrics).totals
    assert_equal_results((loss, torch.cat(gradients), merged), whole, 1e-12)


def test_metrics_are_means_over_tokens():
    zeros, offsets = torch.zeros(4), torch.tensor([0, 1, 4])
    logprob = torch.tensor([2.0, 1.0, 0.5, 0.9]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, 0.0])
    sampler = torch.tensor([1 / 4, 1.0, math.nan, 1.0]).log()
    metrics = policy_loss(logprob, zeros, advantage, offsets, sampler_logprob=sampler).metrics.means()
    expected = {
        "ratio": (2.0 + 1.0 + 0.5 + 0.9) / 4,
        "ratio_max": 2.0,
        "clip_low": 0.25,
        "clip_high": 0.25,
        "clip_dual": 0.0,
        "kl_ref": 0.0,
        "sampler_weight": (2.0 + 1.0 + 1.0 + 1.0) / 4,
        "sampler_truncated": 0.25,
        "sampler_gap": math.log(4.0) / 4,
        "sampler_ess": 7.0**2 / (4 * (16.0 + 3.0)),
    }
    assert {name: metrics[name].item() for name in expected} == pytest.approx(expected, rel=1e-6)
    assert set(metrics) - set(expected) == {"kl_old"}


@pytest.mark.parametrize("name", ["logprob", "old_logprob", "advantage", "ref_logprob"])
@pytest.mark.parametrize("loss", ["ppo", "cispo", "sapo"])
def test_nan_poisons_the_loss_and_its_own_token_only(name, loss):
    tensors = batch([40, 3], seed=6, dtype=torch.float32)
    tensors[name][17] = math.nan
    value, gradient, _ = call(policy_loss, tensors, {"loss": loss, "ref_logprob": True, "kl_coef": 0.1})
    assert value.isnan()
    assert gradient.isnan().nonzero().tolist() == [[17]]


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_nan_in_the_reference_poisons_every_estimator(kl):
    tensors = batch([40, 3], seed=6, dtype=torch.float32)
    tensors["ref_logprob"][17] = math.nan
    value, gradient, _ = call(policy_loss, tensors, {"ref_logprob": True, "kl": kl, "kl_coef": 0.1})
    assert value.isnan()
    assert gradient.isnan().nonzero().tolist() == [[17]]


@pytest.mark.parametrize("log_ratio", [-1e30, -math.inf, 1e30, math.inf])
def test_a_broken_ratio_stays_finite(log_ratio):
    logprob = torch.tensor([log_ratio, 0.0], requires_grad=True)
    loss, metrics = policy_loss(logprob, torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.tensor([0, 2]))
    loss.backward()
    assert loss.isfinite()
    assert logprob.grad.tolist() == [0.0, -0.5]
    assert metrics.totals.isfinite().all()


def test_reads_strided_input():
    tensors = batch([5, 3], seed=7, dtype=torch.float32)
    want = call(policy_loss, tensors, {"ref_logprob": True})
    strided = {name: torch.stack([tensor, tensor], dim=1)[:, 0] for name, tensor in tensors.items()}
    assert_equal_results(call(policy_loss, strided, {"ref_logprob": True}), want, 0.0)


def test_many_threads_give_the_same_bits():
    tensors = batch([777] * 99, seed=8, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(call(policy_loss, tensors, SETTINGS["all at once"]))
    torch.set_num_threads(threads)
    assert_equal_results(*results, 0.0)


ONE, OFFSETS = torch.ones(3), torch.tensor([0, 3])
ERRORS = {
    "matrix": ((torch.ones(3, 1), ONE, ONE, OFFSETS), {}, "logprob must have one dimension, not 2"),
    "half": ((ONE.half(), ONE, ONE, OFFSETS), {}, "logprob must be Float"),
    "length": ((ONE, torch.ones(2), ONE, OFFSETS), {}, "old_logprob must have 3 entries, not 2"),
    "mixed types": ((ONE, ONE, ONE.double(), OFFSETS), {}, "advantage must be Float like the other tensors"),
    "reference": ((ONE, ONE, ONE, OFFSETS), {"ref_logprob": torch.ones(4)}, "ref_logprob must have 3 entries, not 4"),
    "offsets": ((ONE, ONE, ONE, torch.tensor([0, 2])), {}, "offsets must end with 3, not 2"),
    "loss": ((ONE, ONE, ONE, OFFSETS), {"loss": "pop"}, "loss='pop' is not one of ppo, cispo, sapo"),
    "aggregation": ((ONE, ONE, ONE, OFFSETS), {"aggregation": "mean"}, "aggregation='mean' is not one of token_mean"),
    "no divisor": ((ONE, ONE, ONE, OFFSETS), {"aggregation": "constant"}, "needs a divisor"),
    "gradient of data": ((ONE, ONE, ONE.clone().requires_grad_(), OFFSETS), {}, "no gradient flows"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    arguments, chosen, words = ERRORS[name]
    with pytest.raises((RuntimeError, ValueError), match=words):
        policy_loss(*arguments, **chosen)
