"""Policy losses: log-probabilities and credit in, one scalar out, with a named divisor.

A loss is summed over micro-batches, so its divisor is given from outside: the number of tokens, answers or answer
lengths of the whole optimizer step, rollouts without advantage included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from diva_engine import ops
from diva_engine.config import Config
from diva_engine.ops.policy_loss import Aggregation, LossKind, PolicyLoss, RatioKind


@dataclass(frozen=True)
class TokenBatch:
    """The trained tokens of one micro-batch, sequence after sequence."""

    logprob: Tensor  # [T] under the policy, with gradient
    old_logprob: Tensor  # [T] under the policy before this step's updates
    sampler_logprob: Tensor  # [T] as the rollout engine reported them; NaN on forced prefixes, which nobody sampled
    advantage: Tensor  # [T] of each token
    offsets: Tensor  # [S + 1] int64: where each sequence begins
    ref_logprob: Tensor | None = None  # [T] under the starting weights, where the loss has a KL term


Loss = Callable[[TokenBatch, Config, float], PolicyLoss]

AGGREGATION: Mapping[str, Aggregation] = {"token": "token_mean", "seq": "sequence_mean", "constant": "constant"}


def clipped_policy_loss(batch: TokenBatch, config: Config, divisor: float) -> PolicyLoss:
    """-sum min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) / divisor, with the dual clip where it is set."""
    return _policy_loss(batch, config, divisor)


def sequence_policy_loss(batch: TokenBatch, config: Config, divisor: float) -> PolicyLoss:
    """The clipped loss with one ratio an answer, exp(mean of its tokens' log-ratios): GSPO's."""
    return _policy_loss(batch, config, divisor, ratio="sequence")


def cispo_loss(batch: TokenBatch, config: Config, divisor: float) -> PolicyLoss:
    """-sum clip(ratio, 1 - low, 1 + high) * A * logp / divisor, the clipped ratio taken as a constant: no token loses
    its gradient."""
    return _policy_loss(batch, config, divisor, loss="cispo")


def sapo_loss(batch: TokenBatch, config: Config, divisor: float) -> PolicyLoss:
    """-sum 4 / tau * sigmoid(tau * (ratio - 1)) * A / divisor: a soft gate in place of the clip."""
    return _policy_loss(batch, config, divisor, loss="sapo")


def _policy_loss(
    batch: TokenBatch, config: Config, divisor: float, *, loss: LossKind = "ppo", ratio: RatioKind = "token"
) -> PolicyLoss:
    actor, algorithm = config.worker.actor, config.algorithm
    truncation = config.worker.importance_truncation
    return ops.policy_loss(
        batch.logprob,
        batch.old_logprob,
        batch.advantage,
        batch.offsets,
        loss=loss,
        ratio=ratio,
        sampler_logprob=batch.sampler_logprob if truncation else None,
        truncation=truncation or 1.0,
        clip_low=actor.clip_ratio_low,
        clip_high=actor.clip_ratio_high,
        clip_dual=actor.clip_ratio_dual or None,
        tau_positive=actor.tau_positive,
        tau_negative=actor.tau_negative,
        ref_logprob=batch.ref_logprob,
        kl=algorithm.kl_penalty,
        kl_coef=algorithm.kl_coef if batch.ref_logprob is not None else 0.0,
        aggregation=AGGREGATION[actor.loss_avg_mode],
        divisor=divisor,
    )
