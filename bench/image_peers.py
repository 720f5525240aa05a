"""The same perturbations by the libraries a user would pick instead, on images that lie in memory already.

Each peer is a function of a batch; a missing library has no peers. Strengths are those of `OPERATIONS`, in each
library's own terms.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
STRENGTH = 0.45
DEGREES = 30.0
NOISE_STD, SPECKLE_STD, SHARE = 64 * STRENGTH, STRENGTH / 2, STRENGTH / 4
SHRINK = 1 + 2 * STRENGTH
CHAIN = ("rotate", "gaussian", "salt_pepper", "blur")


def library(name: str) -> Any:
    """A module, or None where it is not installed or does not fit this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError):
        return None


def blur_std(side: int) -> float:
    return STRENGTH * side / 64


def blur_taps(side: int) -> int:
    return 2 * math.ceil(3 * blur_std(side)) + 1


# ---- OpenCV and numpy, one image after the other ----


def opencv_functions() -> dict[str, Callable[[Pixels], Pixels]]:
    cv2 = library("cv2")
    if cv2 is None:
        return {}
    cv2.setNumThreads(torch.get_num_threads())
    return opencv_noise(cv2) | opencv_gathers(cv2)


def opencv_noise(cv2: Any) -> dict[str, Callable[[Pixels], Pixels]]:
    random = np.random.default_rng(0)

    def gaussian(image: Pixels) -> Pixels:
        noise = np.empty(image.shape, np.int16)
        cv2.randn(noise, 0, NOISE_STD)
        return cv2.add(image, noise, dtype=cv2.CV_8U)

    def speckle(image: Pixels) -> Pixels:
        noise = random.standard_normal(image.shape, dtype=np.float32)
        return np.clip(image + image * (SPECKLE_STD * noise), 0, 255).astype(np.uint8)

    def salt_pepper(image: Pixels) -> Pixels:
        draw, image = random.random(image.shape[:2], dtype=np.float32), image.copy()
        image[draw < SHARE / 2] = 0
        image[draw > 1 - SHARE / 2] = 255
        return image

    return {"gaussian": gaussian, "speckle": speckle, "salt_pepper": salt_pepper}


def opencv_gathers(cv2: Any) -> dict[str, Callable[[Pixels], Pixels]]:
    def rotate(image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), DEGREES, 1.0)
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))

    def blur(image: Pixels) -> Pixels:
        taps, std = blur_taps(min(image.shape[:2])), blur_std(min(image.shape[:2]))
        return cv2.GaussianBlur(image, (taps, taps), std, borderType=cv2.BORDER_REPLICATE)

    def low_resolution(image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        small = cv2.resize(image, (round(width / SHRINK), round(height / SHRINK)), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)

    return {"rotate": rotate, "blur": blur, "low_resolution": low_resolution}


# ---- Pillow, one image after the other ----


def pillow_functions() -> dict[str, Callable[[Image.Image], Image.Image]]:
    def low_resolution(image: Image.Image) -> Image.Image:
        small = image.resize((round(image.width / SHRINK), round(image.height / SHRINK)), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BILINEAR)

    return {
        "rotate": lambda image: image.rotate(DEGREES, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)),
        "blur": lambda image: image.filter(ImageFilter.GaussianBlur(blur_std(min(image.size)))),
        "low_resolution": low_resolution,
    }


# ---- plain torch, on a batch [B, 3, H, W] of one size ----


def to_bytes(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).byte()


def torch_functions() -> dict[str, Callable[[Tensor], Tensor]]:
    def salt_pepper(batch: Tensor) -> Tensor:
        draw = torch.rand_like(batch[:, :1], dtype=torch.float32)
        return batch.masked_fill(draw < SHARE / 2, 0).masked_fill(draw > 1 - SHARE / 2, 255)

    def rotate(batch: Tensor) -> Tensor:
        cosine, sine = math.cos(math.radians(DEGREES)), math.sin(math.radians(DEGREES))
        matrix = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]], device=batch.device)
        grid = functional.affine_grid(matrix.expand(len(batch), 2, 3), list(batch.shape), align_corners=False)
        return to_bytes(functional.grid_sample(batch.float(), grid, align_corners=False))

    def blur(batch: Tensor) -> Tensor:
        side = min(batch.shape[2:])
        reach = blur_taps(side) // 2
        place = torch.arange(-reach, reach + 1, device=batch.device, dtype=torch.float32)
        weights = torch.softmax(-0.5 * (place / blur_std(side)) ** 2, dim=0).expand(3, 1, 1, -1)
        padded = functional.pad(batch.float(), [reach] * 4, mode="replicate")
        across = functional.conv2d(padded, weights, groups=3)
        return to_bytes(functional.conv2d(across, weights.transpose(2, 3), groups=3))

    def low_resolution(batch: Tensor) -> Tensor:
        small = [round(side / SHRINK) for side in batch.shape[2:]]
        down = functional.interpolate(batch.float(), size=small, mode="area")
        return to_bytes(functional.interpolate(down, size=list(batch.shape[2:]), mode="bilinear"))

    return {
        "gaussian": lambda batch: to_bytes(batch + NOISE_STD * torch.randn_like(batch, dtype=torch.float32)),
        "speckle": lambda batch: to_bytes(batch * (1 + SPECKLE_STD * torch.randn_like(batch, dtype=torch.float32))),
        "salt_pepper": salt_pepper,
        "rotate": rotate,
        "blur": blur,
        "low_resolution": low_resolution,
    }


# ---- torchvision v2 and kornia, on the same batch ----


def torchvision_functions() -> dict[str, Callable[[Tensor], Tensor]]:
    v2 = library("torchvision.transforms.v2.functional")
    if v2 is None:
        return {}
    bilinear = importlib.import_module("torchvision.transforms").InterpolationMode.BILINEAR

    def blur(batch: Tensor) -> Tensor:
        side = min(batch.shape[2:])
        return v2.gaussian_blur(batch, [blur_taps(side)] * 2, [blur_std(side)] * 2)

    def low_resolution(batch: Tensor) -> Tensor:
        small = v2.resize(batch, [round(side / SHRINK) for side in batch.shape[2:]], antialias=True)
        return v2.resize(small, list(batch.shape[2:]))

    return {
        "gaussian": lambda batch: v2.gaussian_noise(batch, 0.0, NOISE_STD / 255),
        "rotate": lambda batch: v2.rotate(batch, DEGREES, interpolation=bilinear, fill=[128.0] * 3),
        "blur": blur,
        "low_resolution": low_resolution,
    }


def kornia_functions() -> dict[str, Callable[[Tensor], Tensor]]:
    kornia = library("kornia")
    if kornia is None:
        return {}
    specks = kornia.augmentation.RandomSaltAndPepperNoise(amount=SHARE, salt_vs_pepper=0.5, p=1.0)
    noise = kornia.augmentation.RandomGaussianNoise(std=NOISE_STD / 255, p=1.0)

    def through_float(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda batch: (change(batch.float() / 255) * 255).round_().clamp_(0, 255).byte()

    def blur(values: Tensor) -> Tensor:
        side = min(values.shape[2:])
        return kornia.filters.gaussian_blur2d(values, (blur_taps(side),) * 2, (blur_std(side),) * 2, "replicate")

    def rotate(values: Tensor) -> Tensor:
        return kornia.geometry.rotate(values, torch.tensor([DEGREES], device=values.device).expand(len(values)))

    return {
        "gaussian": through_float(noise),
        "salt_pepper": through_float(specks),
        "rotate": through_float(rotate),
        "blur": through_float(blur),
    }


def with_chain(functions: dict[str, Callable[[Any], Any]]) -> dict[str, Callable[[Any], Any]]:
    """The chain of four too, where the library has all of them."""
    if not all(name in functions for name in CHAIN):
        return functions

    def chain(images: Any) -> Any:
        for name in CHAIN:
            images = functions[name](images)
        return images

    return {**functions, "chain of four": chain}
