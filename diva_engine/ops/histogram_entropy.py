"""Shannon entropy of the grey levels of images: the cheap measure of how much there is to see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diva_engine.ops import library  # noqa: F401  (registers the op)
from diva_engine.ops.image_batch import ImageBatch, pack_images


def histogram_entropy(
    images: ImageBatch | Sequence[Tensor],  # [B] of [H, W, C] uint8, C 1, 3 or 4 (alpha), all on one device
) -> Tensor:  # [B] float32
    """The entropy, in nats, of each image's histogram of 256 grey levels: 0 for one grey alone, at most ln 256 = 5.55.

    Colours become grey as (77 R + 150 G + 29 B + 128) >> 8 (Rec. 601); alpha is not looked at. The histogram is exact,
    and the result has the same bits on CPU and CUDA. No gradient.
    """
    batch = images if isinstance(images, ImageBatch) else pack_images(images)
    rows = [[offset, *size] for offset, size in zip(batch.offsets, batch.sizes, strict=True)]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4).to(batch.pixels.device, non_blocking=True)
    entropy: Tensor = torch.ops.diva_engine.histogram_entropy.default(batch.pixels, table)
    return entropy


def histogram_entropy_reference(images: ImageBatch | Sequence[Tensor]) -> Tensor:
    """The definition, in plain torch."""
    batch = images if isinstance(images, ImageBatch) else pack_images(images)
    entropies = []
    for image in batch.images():
        grey = image.long()[..., 0]
        if image.shape[2] > 1:
            red, green, blue = image.long()[..., :3].unbind(dim=2)
            grey = (77 * red + 150 * green + 29 * blue + 128) >> 8
        share = grey.flatten().bincount(minlength=256).double() / grey.numel()
        entropies.append(torch.special.entr(share).sum().float())
    return torch.stack(entropies) if entropies else batch.pixels.new_empty(0, dtype=torch.float32)


@torch.library.register_fake("diva_engine::histogram_entropy")
def _fake(pixels: Tensor, images: Tensor) -> Tensor:
    return pixels.new_empty(images.shape[0], dtype=torch.float32)
