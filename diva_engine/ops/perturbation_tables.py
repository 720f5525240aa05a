"""The integer tables of image perturbations: made once on the host, where sines and quantiles are at hand."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

# Shared with csrc/perturb_images/perturb_images.h
NORMAL_BITS = 12  # a draw picks one of 4096 equally likely quantiles
NORMAL_UNIT = 2.0**-11
WEIGHT_ONE = 2048  # bilinear and resample weights are in units of 2^-11
BLUR_ONE = 65536


@lru_cache(maxsize=1)
def normal_quantiles() -> Tensor:
    """[4096] int32: the quantiles (i + 1/2) / 4096 of the standard normal distribution, in units of 2^-11."""
    count = 1 << NORMAL_BITS
    normal = NormalDist()
    return torch.tensor(
        [round(normal.inv_cdf((i + 0.5) / count) / NORMAL_UNIT) for i in range(count)], dtype=torch.int32
    )


@lru_cache(maxsize=256)
def blur_weights(std: float) -> Tensor:
    """[radius + 1] int32: a Gaussian cut at three standard deviations, in units of 2^-16, the centre first."""
    radius = math.ceil(3 * std)
    # At 40 standard deviations the height is 0 already; the square of a larger quotient may overflow.
    heights = [math.exp(-0.5 * min(k / std, 40.0) ** 2) if k else 1.0 for k in range(radius + 1)]
    total = heights[0] + 2 * sum(heights[1:])
    sides = [round(height / total * BLUR_ONE) for height in heights[1:]]
    return torch.tensor([BLUR_ONE - 2 * sum(sides), *sides], dtype=torch.int32)


@lru_cache(maxsize=1024)
def resample_table(count: int, new_count: int) -> Tensor:
    """[new_count, 1 + taps] int32: for each new coordinate the first old one, then the weights in units of 2^-11.

    To fewer: the mean over the old pixels that a new one covers. To more: linear between pixel centres.
    """
    new = torch.arange(new_count)
    if new_count <= count:
        first = new * count // new_count
        last = ((new + 1) * count - 1) // new_count
        taps = min(count, int((last - first).max()) + 1)
        first = first.clamp(max=count - taps)
        old = first[:, None] + torch.arange(taps)  # [new, taps]
        begin = torch.maximum(old * new_count, new[:, None] * count)
        end = torch.minimum((old + 1) * new_count, (new[:, None] + 1) * count)
        shares = (end - begin).clamp(min=0).double() / count
    else:
        position = ((new + 0.5) * count / new_count - 0.5).clamp(0, count - 1)
        taps = min(count, 2)
        first = position.long().clamp(max=count - taps)
        old = first[:, None] + torch.arange(taps)
        shares = (1 - (position[:, None] - old).abs()).clamp(min=0)
    weights = (shares * WEIGHT_ONE).round().int()
    heaviest = weights.argmax(dim=1, keepdim=True)
    weights.scatter_add_(1, heaviest, WEIGHT_ONE - weights.sum(dim=1, keepdim=True, dtype=torch.int32))
    return torch.cat([first[:, None].int(), weights], dim=1)


def cosine_sine(degrees: float) -> tuple[float, float]:
    """Exact at multiples of 90 degrees, so that a quarter turn is a permutation of the pixels."""
    quarters, rest = divmod(degrees % 360.0, 90.0)
    cosine, sine = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarters)):
        cosine, sine = -sine, cosine
    return cosine, sine
