"""Policy losses: log-probabilities and credit in, one scalar out, with a named divisor.

A loss is summed over micro-batches, so its divisor is given from outside: the number of tokens, answers or answer
lengths of the whole optimizer step, rollouts without advantage included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from diva_engine import ops
from diva_engine.config import ActorConfig
from diva_engine.ops.policy_loss import Aggregation, PolicyLoss


@dataclass(frozen=True)
class TokenBatch:
    """The trained tokens of one micro-batch, sequence after sequence."""

    logprob: Tensor  # [T] under the policy, with gradient
    old_logprob: Tensor  # [T] under the policy before this step's updates
    sampler_logprob: Tensor  # [T] as the rollout engine reported them; NaN on forced prefixes, which nobody sampled
    advantage: Tensor  # [T] of each token
    offsets: Tensor  # [S + 1] int64: where each sequence begins


Loss = Callable[[TokenBatch, ActorConfig, float], PolicyLoss]

AGGREGATION: Mapping[str, Aggregation] = {"token": "token_mean", "seq": "sequence_mean", "constant": "constant"}


def clipped_policy_loss(batch: TokenBatch, settings: ActorConfig, divisor: float) -> PolicyLoss:
    """-sum min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) / divisor, with the dual clip where it is set."""
    return ops.policy_loss(
        batch.logprob,
        batch.old_logprob,
        batch.advantage,
        batch.offsets,
        sampler_logprob=batch.sampler_logprob if settings.importance_truncation else None,
        truncation=settings.importance_truncation or 1.0,
        clip_low=settings.clip_ratio_low,
        clip_high=settings.clip_ratio_high,
        clip_dual=settings.clip_ratio_dual or None,
        aggregation=AGGREGATION[settings.loss_avg_mode],
        divisor=divisor,
    )
