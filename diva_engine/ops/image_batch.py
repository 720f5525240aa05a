"""A ragged batch of images in one buffer, as the image ops read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: where `pack_images` and the ops let an image begin, so that a GPU reads 16 bytes at once
MAX_SIDE = 16384  # then byte positions within an image fit 32 bits


@dataclass(frozen=True)
class ImageBatch:
    """B images, uint8, each H x W x C, one behind the other. C is 1 (grey), 3 (RGB) or 4 (RGB and alpha)."""

    pixels: Tensor  # [total bytes] uint8
    offsets: tuple[int, ...]  # [B] first byte of each image
    sizes: tuple[tuple[int, int, int], ...]  # [B] (H, W, C)

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 1:
            raise ValueError(f"pixels must be one uint8 vector, not {self.pixels.dtype} {tuple(self.pixels.shape)}")
        if len(self.offsets) != len(self.sizes):
            raise ValueError(f"{len(self.offsets)} offsets for {len(self.sizes)} images")
        for i, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            check_size(size, f"image {i}")
            height, width, channels = size
            if offset < 0 or offset + height * width * channels > len(self.pixels):
                raise ValueError(
                    f"image {i} of {size} at byte {offset} lies outside the {len(self.pixels)} pixel bytes"
                )

    def __len__(self) -> int:
        return len(self.sizes)

    def images(self) -> list[Tensor]:
        """Each image as [H, W, C], a view of the buffer."""
        return [
            self.pixels[offset : offset + height * width * channels].view(height, width, channels)
            for offset, (height, width, channels) in zip(self.offsets, self.sizes, strict=True)
        ]


def check_size(size: Sequence[int], name: str) -> None:
    """Refuse what is no image, in words."""
    if len(size) != 3 or size[2] not in (1, 3, 4):
        raise ValueError(f"{name} must be [H, W, C] with C 1, 3 or 4, not {tuple(size)}")
    if not (0 < size[0] <= MAX_SIDE and 0 < size[1] <= MAX_SIDE):
        raise ValueError(f"{name} must have sides of 1 to {MAX_SIDE} pixels, not {size[0]} x {size[1]}")


def aligned_offsets(sizes: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Where images of these sizes lie in a new buffer, and the length of that buffer."""
    offsets, end = [], 0
    for height, width, channels in sizes:
        offsets.append(end)
        end += -(-height * width * channels // ALIGNMENT) * ALIGNMENT
    return offsets, end


def new_bytes(count: int, device: torch.device) -> Tensor:
    """[count] uint8, not filled. On the CPU from numpy, which asks the system for large pages: fresh 4 KiB pages cost
    more than the copy that fills them."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(count, np.uint8))
    return torch.empty(count, dtype=torch.uint8, device=device)


def pack_images(images: Sequence[Tensor]) -> ImageBatch:
    """Copy images, uint8 [H, W, C] each, on one device, into one buffer."""
    for i, image in enumerate(images):
        if image.dtype != torch.uint8:
            raise ValueError(f"image {i} must be uint8, not {image.dtype}")
        check_size(image.shape, f"image {i}")
    sizes = tuple((int(image.shape[0]), int(image.shape[1]), int(image.shape[2])) for image in images)
    offsets, num_bytes = aligned_offsets(sizes)
    device = images[0].device if images else torch.device("cpu")
    pixels = new_bytes(num_bytes, device)
    for image, offset in zip(images, offsets, strict=True):
        pixels[offset : offset + image.numel()].view(image.shape).copy_(image)
    return ImageBatch(pixels, tuple(offsets), sizes)
