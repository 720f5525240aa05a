"""A variant's image operations on decoded pictures: a pure function of the pixels, the operations and a key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from diva_engine.records import ImageOperation
from diva_engine.seeds import derive_seed

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB


def perturb(images: Sequence[Image.Image], operations: Sequence[ImageOperation], key: int) -> list[Image.Image]:
    """Applies the operations in order to every RGB image; sizes stay. Equal keys give equal pixels.

    Strengths: degrees, counter-clockwise, for `rotate`; else s in [0, 1]: Gaussian noise of 64 s grey levels, speckle
    of s / 2 of the value, salt and pepper on s / 4 of the pixels, blur of s / 64 of the shorter side, low resolution
    with sides divided by 1 + 2 s, a grey rectangle over s / 4 of the area.
    """
    return [_perturb_one(image, operations, derive_seed(key, number)) for number, image in enumerate(images)]


def _perturb_one(image: Image.Image, operations: Sequence[ImageOperation], seed: int) -> Image.Image:
    random = np.random.Generator(np.random.Philox(key=seed))
    for operation in operations:
        image = _OPERATIONS[operation.name](image, operation.strength, random)
    return image


def _rotate(image: Image.Image, degrees: float, random: np.random.Generator) -> Image.Image:
    fill = tuple(int(channel) for channel in _edge_mean(np.asarray(image)))
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill)


def _edge_mean(pixels: Pixels) -> npt.NDArray[np.uint8]:
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    mean: npt.NDArray[np.uint8] = np.rint(edges.mean(axis=0)).astype(np.uint8)
    return mean


def _gaussian(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    return _from_float(pixels + 64 * strength * noise)


def _speckle(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    return _from_float(pixels * (1 + strength / 2 * noise))


def _salt_pepper(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Whole pixels turn black or white, all over the image, so that greys stay grey."""
    pixels = np.array(image)
    draw = random.random(pixels.shape[:2], dtype=np.float32)
    pixels[draw < strength / 8] = 0
    pixels[draw > 1 - strength / 8] = 255
    return Image.fromarray(pixels)


def _blur(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size) / 64))


def _low_resolution(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    small = [max(1, round(side / (1 + 2 * strength))) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)


def _occlusion(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * math.sqrt(strength / 4))) for side in image.size)
    left = int(random.integers(0, image.width - width + 1))
    top = int(random.integers(0, image.height - height + 1))
    pixels = np.array(image)
    pixels[top : top + height, left : left + width] = 128
    return Image.fromarray(pixels)


def _from_float(pixels: npt.NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


_OPERATIONS: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "rotate": _rotate,
    "gaussian": _gaussian,
    "salt_pepper": _salt_pepper,
    "speckle": _speckle,
    "blur": _blur,
    "low_resolution": _low_resolution,
    "occlusion": _occlusion,
}
