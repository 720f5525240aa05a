"""Drawing tokens: a pure function of logits and of one number per answer and token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diva_engine.records import Sampling


def uniform_table(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """[N, num_tokens] float64 in (0, 1]: row i is the stream of seed i (non-negative), whatever the other seeds are."""
    table = np.empty((len(seeds), num_tokens))
    for row, seed in zip(table, seeds, strict=True):
        np.random.Generator(np.random.Philox(key=seed)).random(out=row)
    return torch.from_numpy(1.0 - table)


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """logits [N, V] (-inf where banned), uniforms [N] in (0, 1] -> tokens [N] int64, logprobs [N] float32.

    The log-probabilities are of the whole softmax(logits / temperature), also where `top_p` cut its tail off; greedy
    decoding (temperature 0) reports them at temperature 1.
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        tokens = logits.argmax(dim=-1)
    else:
        logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
        probs = logprobs.exp()
        tokens = _invert_cdf(probs if sampling.top_p == 1 else _nucleus(probs, sampling.top_p), uniforms)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """weights [N, V] >= 0, not normalised -> [N]: the first token at which the running sum reaches its share.

    As uniforms lie in (0, 1], a token of weight 0 is never drawn, whatever the rounding.
    """
    running = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(running, uniforms[:, None] * running[:, -1:])[:, 0]


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """probs [N, V] with all but the most probable tokens, those that first hold `top_p` together, set to 0."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(mass_before >= top_p, 0.0)
    kept[:, 0] = ordered[:, 0]
    return torch.zeros_like(probs).scatter_(1, order, kept)
