"""Losses and gradients equal their formulas in double precision, and do not depend on the cut into micro-batches."""

from __future__ import annotations

import pytest
import torch

from diva_engine.algorithm.losses import TokenBatch
from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.settings import build_config

LENGTHS = {
    "one token each": [1, 1, 1],
    "ragged": [5, 1, 9, 3],
    "one answer": [6],
    "many": [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
}


def config_of(name, **settings):
    return build_config({**recipe_defaults(name), "algorithm.adv_estimator": name, **settings})


def make_batch(lengths, dtype=torch.float64, spread=0.3, seed=0):
    """Answers with one advantage each, some negative, some zero; the policy has moved by `spread`."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    old = -3 * torch.rand(total, generator=draw, dtype=dtype)
    logprob = (old + spread * torch.randn(total, generator=draw, dtype=dtype)).requires_grad_()
    advantage = torch.randn(len(lengths), generator=draw, dtype=dtype)
    advantage[1::4] = 0
    per_token = advantage.repeat_interleave(torch.tensor(lengths))
    ref = old + spread * torch.randn(total, generator=draw, dtype=dtype)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    sampler = old + 0.01 * torch.randn(total, generator=draw, dtype=dtype)
    return TokenBatch(logprob, old, sampler, per_token, offsets, ref_logprob=ref)


def without_reference(batch):
    return TokenBatch(batch.logprob, batch.old_logprob, batch.sampler_logprob, batch.advantage, batch.offsets)


def ppo_token(ratio, a, low, high):
    return torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def surrogate_of(name, batch, span, actor):
    """[tokens of the answer], written answer by answer as the papers have it."""
    logprob, old, a = batch.logprob[span], batch.old_logprob[span], batch.advantage[span]
    low, high = actor.clip_ratio_low, actor.clip_ratio_high
    ratio = (logprob - old).exp()
    if name == "gspo":
        # The paper's loss is one clipped term an answer; spread over its tokens its mean is the same.
        sequence = (logprob - old).mean().exp()
        return ppo_token(sequence, a[0], low, high).expand(len(a))
    if name == "cispo":
        return ratio.clamp(1 - low, 1 + high).detach() * a * logprob
    if name == "sapo":
        tau = actor.tau_positive if a[0] >= 0 else actor.tau_negative
        return torch.sigmoid(tau * (ratio - 1)) * 4 / tau * a
    return ppo_token(ratio, a, low, high)


def kl_of(config, batch, span):
    d = batch.ref_logprob[span] - batch.logprob[span]
    return {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - d - 1}[config.algorithm.kl_penalty]


def loss_by_hand(name, batch, config, divisor):
    total = torch.zeros((), dtype=torch.float64)
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        span = slice(start, end)
        per_token = -surrogate_of(name, batch, span, config.worker.actor)
        if batch.ref_logprob is not None:
            per_token = per_token + config.algorithm.kl_coef * kl_of(config, batch, span)
        is_mean = config.worker.actor.loss_avg_mode == "seq"
        total = total + (per_token.mean() if is_mean else per_token.sum())
    return total / divisor


def value_and_gradient(loss, batch):
    (gradient,) = torch.autograd.grad(loss, batch.logprob)
    return loss.item(), gradient


NAMES = ["grpo", "dr_grpo", "rloo", "gspo", "cispo", "sapo"]


@pytest.mark.parametrize("spread", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_the_formula(name, lengths, spread):
    config, batch = config_of(name), without_reference(make_batch(lengths, spread=spread))
    found = value_and_gradient(find_recipe(name).loss(batch, config, 7.0).loss, batch)
    expected = value_and_gradient(loss_by_hand(name, batch, config, 7.0), batch)
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", NAMES)
def test_the_divergence_is_a_term_of_any_loss(name, kl):
    config = config_of(name, **{"algorithm.kl_penalty": kl, "algorithm.kl_coef": 0.25})
    batch = make_batch(LENGTHS["ragged"])
    found = value_and_gradient(find_recipe(name).loss(batch, config, 18.0).loss, batch)
    expected = value_and_gradient(loss_by_hand(name, batch, config, 18.0), batch)
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_answers_cut_into_micro_batches_add_up(name):
    config, whole = config_of(name), make_batch(LENGTHS["many"])
    loss = find_recipe(name).loss
    parts = []
    for start, end in zip(whole.offsets[:-1].tolist(), whole.offsets[1:].tolist(), strict=True):
        tensors = [whole.logprob, whole.old_logprob, whole.sampler_logprob, whole.advantage]
        cut = [tensor[start:end].detach() for tensor in tensors]
        ref = whole.ref_logprob[start:end]
        parts.append(loss(TokenBatch(*cut, torch.tensor([0, end - start]), ref), config, 7.0).loss)
    assert sum(parts).item() == pytest.approx(loss(whole, config, 7.0).loss.item(), abs=1e-9)


def test_a_token_outside_the_clip_learns_only_where_the_recipe_says_so():
    """An answer twice as probable as before, with a positive advantage: PPO's clip stops it, CISPO's does not."""
    old = torch.tensor([-2.0, -2.0])
    moved = {}
    for name in ("grpo", "gspo", "cispo", "sapo"):
        logprob = (old + 0.7).requires_grad_()
        batch = TokenBatch(logprob, old, old, torch.ones(2), torch.tensor([0, 2]))
        find_recipe(name).loss(batch, config_of(name), 1.0).loss.backward()
        moved[name] = logprob.grad.abs().sum().item()
    assert moved["grpo"] == moved["gspo"] == 0.0
    assert moved["cispo"] == pytest.approx(2 * 2.0137527, rel=1e-5)
    assert 0 < moved["sapo"] < moved["cispo"]
