"""A variant's image operations on decoded pictures: a pure function of the pixels, the operations and a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from diva_engine.records import ImageOperation
from diva_engine.seeds import derive_seed

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB


def perturb(images: Sequence[Image.Image], operations: Sequence[ImageOperation], key: int) -> list[Image.Image]:
    """Applies the operations in order to every RGB image; sizes stay. Equal keys give equal pixels.

    Strengths: degrees for `rotate`; else in [0, 1]: standard deviation of Gaussian noise over the full range, share of
    pixels hit by salt and pepper, standard deviation of the speckle factor, blur over a window of 50 * strength pixels,
    share of resolution lost, side of the occluding rectangle over the image's.
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
    return _from_float(pixels + 255 * strength * noise)


def _speckle(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    return _from_float(pixels * (1 + strength * noise))


def _salt_pepper(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Whole pixels turn black or white, all over the image, so that greys stay grey."""
    pixels = np.array(image)
    draw = random.random(pixels.shape[:2], dtype=np.float32)
    pixels[draw < strength / 2] = 0
    pixels[draw > 1 - strength / 2] = 255
    return Image.fromarray(pixels)


def _blur(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    window = max(3, int(50 * strength) | 1)
    sigma = 0.3 * ((window - 1) / 2 - 1) + 0.8  # OpenCV's sigma for a window
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _low_resolution(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    small = [max(1, round(side * (1 - strength))) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)


def _occlusion(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * strength)) for side in image.size)
    left = int(random.integers(0, image.width - width + 1))
    top = int(random.integers(0, image.height - height + 1))
    pixels = np.array(image)
    pixels[top : top + height, left : left + width] = 0
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
