"""Images for the tests of the image ops."""

from __future__ import annotations

import torch
from hypothesis import strategies
from torch import Tensor

from diva_engine.ops import perturb_images
from diva_engine.records import ImageOperation

SEED = 0x123456789ABCDEF0
EXACT = {"gaussian", "speckle", "salt_pepper", "occlusion"}  # the others are computed in fixed point

# Sizes that meet every branch: one pixel, one row, one column, around a vector, around a CUDA block of 2048 pixels.
SIZES = [
    (1, 1, 1),
    (1, 1, 3),
    (1, 1, 4),
    (1, 33, 3),
    (31, 1, 3),
    (2, 2, 1),
    (3, 2, 4),
    (7, 31, 3),
    (33, 64, 1),
    (64, 33, 4),
    (40, 70, 3),
    (65, 67, 3),
]

OPERATIONS = {
    "rotate": ImageOperation("rotate", 30.0),
    "gaussian": ImageOperation("gaussian", 0.45),
    "speckle": ImageOperation("speckle", 0.45),
    "salt_pepper": ImageOperation("salt_pepper", 0.45),
    "blur": ImageOperation("blur", 0.9),
    "low_resolution": ImageOperation("low_resolution", 0.45),
    "occlusion": ImageOperation("occlusion", 0.45),
}

sizes = strategies.tuples(strategies.integers(1, 70), strategies.integers(1, 70), strategies.sampled_from([1, 3, 4]))

single_operations = strategies.one_of(
    strategies.builds(ImageOperation, strategies.just("rotate"), strategies.floats(-400, 400)),
    strategies.builds(
        ImageOperation, strategies.sampled_from([n for n in OPERATIONS if n != "rotate"]), strategies.floats(0, 1)
    ),
)


def noise_image(size: tuple[int, int, int], seed: int = 0) -> Tensor:
    """White noise: the hardest picture for interpolation."""
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flat_image(size: tuple[int, int, int], colour: list[int]) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(size).contiguous()


def one(image, name, strength, key=0, seed=SEED, **options):
    return perturb_images([image], [[ImageOperation(name, strength)]], keys=[key], seed=seed, **options)[0]


def difference(image, other):
    assert image.shape == other.shape
    return (image.int() - other.int()).abs().max().item()
