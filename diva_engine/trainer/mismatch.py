"""How far the sampler's probabilities lie from the trainer's, for the tokens of a step.

Both read the same weights, so their log-probabilities should agree to rounding: a large gap says that the weight sync,
the pixels or the sampling settings broke.
"""

from __future__ import annotations

from torch import Tensor

from diva_engine.ops.policy_loss import LOG_RATIO_LIMIT

GAP_MAX = "sync/logprob_gap_max"


def mismatch_metrics(log_ratio: Tensor) -> dict[str, float]:
    """log_ratio [T]: log-probability in the trainer minus that in the sampler, of tokens that the sampler drew; NaN
    (on forced prefixes, which nobody sampled) is left out. Empty where nothing is left."""
    sampled = log_ratio[~log_ratio.isnan()].double()
    if not len(sampled):
        return {}
    gap = sampled.abs()
    ratio = sampled.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return {
        "sync/logprob_gap_mean": float(gap.mean()),
        GAP_MAX: float(gap.max()),
        "mismatch/ratio_mean": float(ratio.mean()),
        "mismatch/ratio_max": float(ratio.max()),
        "mismatch/ess": float(ratio.mean().square() / ratio.square().mean()),
        "mismatch/kl_k1": float(-sampled.mean()),
        "mismatch/kl_k3": float((ratio - 1 - sampled).mean()),
    }


def describe_gap(gap: float, bound: float) -> str:
    return (
        f"a sampled token's log-probability differs by {gap:.3g} between trainer and rollout engine, more than "
        f"worker.rollout.max_logprob_gap={bound:g}: the weight sync did not reach the engine, or engine and trainer "
        "do not see the same tokens, pixels or number type; with reason to expect it, raise the bound"
    )
