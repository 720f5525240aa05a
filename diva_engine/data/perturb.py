"""A variant's image operations on decoded pictures: a pure function of the pixels, the operations and a key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from diva_engine.ops import perturb_images
from diva_engine.records import ImageOperation


def perturb(images: Sequence[Image.Image], operations: Sequence[ImageOperation], key: int) -> list[Image.Image]:
    """Applies the operations in order to every RGB image; sizes stay. Equal keys give equal pixels.

    What the strengths mean: `ops.perturb_images`. The images of a question have noise of their own.
    """
    pixels = [torch.from_numpy(np.array(image)) for image in images]  # [H, W, 3] each
    changed = perturb_images(pixels, [operations] * len(pixels), keys=range(len(pixels)), seed=key)
    return [Image.fromarray(image.numpy()) for image in changed]
