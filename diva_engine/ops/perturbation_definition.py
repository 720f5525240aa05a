"""What each image operation means, in plain torch, for one image [H, W, C] uint8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diva_engine.ops.perturbation_tables import cosine_sine, normal_quantiles
from diva_engine.records import ImageOperation

LOW32 = 0xFFFFFFFF


def reference_image(image: Tensor, operations: Sequence[ImageOperation], seed: int, key: int, expand: bool) -> Tensor:
    """The operations in order."""
    for slot, operation in enumerate(operations):
        strength = operation.strength
        if operation.name == "rotate":
            image = rotated(image, strength, expand)
        elif operation.name == "blur":
            image = blurred(image, strength)
        elif operation.name == "low_resolution":
            image = coarsened(image, strength)
        else:
            colours = image.shape[2] - (image.shape[2] == 4)  # alpha is left alone
            noisy = noise(operation, image.long(), seed, key, slot)
            image = torch.cat([noisy[..., :colours].to(torch.uint8), image[..., colours:]], dim=2)
    return image


def noise(operation: ImageOperation, pixels: Tensor, seed: int, key: int, slot: int) -> Tensor:
    """Pixels [H, W, C] int64, alpha included, with noise on all of them."""
    height, width, channels = pixels.shape
    strength = operation.strength
    if operation.name == "salt_pepper":
        draws = draws16(seed, key, slot, height * width).view(height, width, 1)
        share = round(strength / 4 * 65536)
        pixels = pixels.masked_fill(draws < share, 255)
        return pixels.masked_fill(draws < share // 2, 0)
    if operation.name == "occlusion":
        return occluded(pixels, strength, *philox_words(seed, key, slot, 1)[0, :2].tolist())
    draws = draws16(seed, key, slot, pixels.numel()).view(height, width, channels)
    normal = normal_quantiles().long()[draws >> 4]  # in units of 2^-11
    if operation.name == "gaussian":
        std = round(64 * strength * 2**8)
        change = rounded_shift(normal * std, 19)
    else:
        std = round(strength / 2 * 2**12)
        change = rounded_shift(pixels * rounded_shift(normal * std, 11), 12)
    return (pixels + change).clamp(0, 255)


def occluded(pixels: Tensor, strength: float, draw_top: int, draw_left: int) -> Tensor:
    height, width, _ = pixels.shape
    side = math.sqrt(strength / 4)
    rows, columns = round(side * height), round(side * width)
    top = draw_top * (height - rows + 1) >> 32
    left = draw_left * (width - columns + 1) >> 32
    pixels = pixels.clone()
    pixels[top : top + rows, left : left + columns] = 128
    return pixels


def rounded_shift(value: Tensor, bits: int) -> Tensor:
    """value / 2^bits, to the nearest integer."""
    return (value + (1 << (bits - 1))) >> bits


def draws16(seed: int, key: int, slot: int, count: int) -> Tensor:
    """[count] numbers below 2^16: the halves of the Philox words, the lower half first."""
    words = philox_words(seed, key, slot, -(-count // 8))
    return torch.stack([words & 0xFFFF, words >> 16], dim=2).reshape(-1)[:count]


def philox_words(seed: int, key: int, slot: int, blocks: int) -> Tensor:
    """[blocks, 4] int64 below 2^32: Philox4x32-10 of the counters (block, slot, key) under the seed."""
    block = torch.arange(blocks)
    x, y, z, w = block, torch.full_like(block, slot), block * 0 + (key & LOW32), block * 0 + (key >> 32 & LOW32)
    key0, key1 = seed & LOW32, seed >> 32 & LOW32
    for _ in range(10):
        product0, product1 = x * 0xD2511F53, z * 0xCD9E8D57  # of 64 bits: the sign is just the highest
        x, y, z, w = (
            (product1 >> 32 & LOW32) ^ y ^ key0,
            product1 & LOW32,
            (product0 >> 32 & LOW32) ^ w ^ key1,
            product0 & LOW32,
        )
        key0, key1 = key0 + 0x9E3779B9 & LOW32, key1 + 0xBB67AE85 & LOW32
    return torch.stack([x, y, z, w], dim=1)


def to_bytes(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255).to(torch.uint8)


def rotated(image: Tensor, degrees: float, expand: bool) -> Tensor:
    height, width, channels = image.shape
    cosine, sine = cosine_sine(degrees)
    new_height, new_width = height, width
    if expand:
        new_height = max(1, math.ceil(width * abs(sine) + height * abs(cosine) - 1e-6))
        new_width = max(1, math.ceil(width * abs(cosine) + height * abs(sine) - 1e-6))
    dy = torch.arange(new_height, dtype=torch.float64)[:, None] - (new_height - 1) / 2
    dx = torch.arange(new_width, dtype=torch.float64)[None, :] - (new_width - 1) / 2
    x = cosine * dx - sine * dy + (width - 1) / 2
    y = sine * dx + cosine * dy + (height - 1) / 2
    # A border of one fill pixel on every side stands for all that lies outside.
    canvas = border_mean(image).expand(height + 2, width + 2, channels).clone()
    canvas[1:-1, 1:-1] = image.double()
    x, y = (x + 1).clamp(0, width + 1 - 1e-9), (y + 1).clamp(0, height + 1 - 1e-9)
    left, top = x.long(), y.long()
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = torch.lerp(canvas[top, left], canvas[top, left + 1], across)
    lower = torch.lerp(canvas[top + 1, left], canvas[top + 1, left + 1], across)
    return to_bytes(torch.lerp(upper, lower, down))


def border_mean(image: Tensor) -> Tensor:
    """[C] mean colour of the pixels on the image's border, rounded."""
    inner = torch.zeros(image.shape[:2], dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    return (image[~inner].double().mean(dim=0) + 0.5).floor()


def blurred(image: Tensor, strength: float) -> Tensor:
    std = strength * min(image.shape[:2]) / 64
    if std == 0:
        return image
    radius = math.ceil(3 * std)
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (distance / std) ** 2)
    weights = weights / weights.sum()
    pixels = image.double()
    for axis in (1, 0):
        neighbours = torch.arange(pixels.shape[axis])[:, None] + distance.long()
        neighbours = neighbours.clamp(0, pixels.shape[axis] - 1)
        pixels = torch.einsum("ikc...,k->ic...", pixels.movedim(axis, 0)[neighbours], weights).movedim(0, axis)
    return to_bytes(pixels)


def coarsened(image: Tensor, strength: float) -> Tensor:
    """Through a smaller image of bytes."""
    height, width, _ = image.shape
    shrink = 1 + 2 * strength
    rows, columns = max(1, round(height / shrink)), max(1, round(width / shrink))
    small = to_bytes(resized(image, mean_matrix(height, rows), mean_matrix(width, columns)))
    return to_bytes(resized(small, linear_matrix(rows, height), linear_matrix(columns, width)))


def resized(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return torch.einsum("yh,hwc,xw->yxc", down, image.double(), across)


def mean_matrix(count: int, new_count: int) -> Tensor:
    """[new_count, count]: each new pixel is the mean over what it covers."""
    old = torch.arange(count, dtype=torch.float64)
    new = torch.arange(new_count, dtype=torch.float64)[:, None] * (count / new_count)
    covered = torch.minimum(old + 1, new + count / new_count) - torch.maximum(old, new)
    return covered.clamp(min=0) * (new_count / count)


def linear_matrix(count: int, new_count: int) -> Tensor:
    """[new_count, count]: linear between the centres of the old pixels."""
    centre = (torch.arange(new_count, dtype=torch.float64)[:, None] + 0.5) * (count / new_count) - 0.5
    distance = (centre.clamp(0, count - 1) - torch.arange(count, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)
