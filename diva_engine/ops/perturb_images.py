"""Perturbations of images: rotation, noise, blur, low resolution, occlusion, over a ragged batch in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diva_engine.ops import library  # noqa: F401  (registers the op)
from diva_engine.ops.image_batch import ImageBatch, pack_images
from diva_engine.ops.perturbation_definition import reference_image
from diva_engine.ops.perturbation_plan import PerturbationPlan, plan_perturbations, signed64
from diva_engine.records import ImageOperation


def perturb_images(
    images: Sequence[Tensor],  # [B] of [H, W, C] uint8, C 1, 3 or 4 (alpha), all on one device
    operations: Sequence[Sequence[ImageOperation]],  # [B] in the order in which they are applied
    *,
    keys: Sequence[int],  # [B] what tells the images' noise apart, any 64-bit numbers
    seed: int,  # 64 bits
    expand_canvas: bool = False,
) -> list[Tensor]:
    """Perturb every image by its own list of operations. Returns [H, W, C] uint8 each; none is changed in place.

    The strengths (0.30 and 0.45 are the paper's):

    - `rotate`: degrees, counter-clockwise, about the centre, bilinear; what comes in from outside has the mean colour
      of the image's border. The canvas stays, or with `expand_canvas` grows until the whole image fits.
    - `gaussian`: adds normal noise of 64 * strength grey levels to every colour value.
    - `speckle`: multiplies every colour value by 1 + normal noise of strength / 2.
    - `salt_pepper`: a share strength / 4 of the pixels becomes black or white, all colours of a pixel together.
    - `blur`: Gaussian, its standard deviation strength / 64 of the shorter side.
    - `low_resolution`: both sides divided by 1 + 2 * strength (mean over the covered pixels), then enlarged again
      (linear).
    - `occlusion`: one grey rectangle somewhere, of the image's own proportions and strength / 4 of its area.

    Strengths are in [0, 1], except for `rotate`. Noise and occlusion leave alpha alone; the others treat it as a
    colour. The noise is a function of (seed, key of the image, place in its list, pixel) and of nothing else: the same
    bits on CPU and CUDA, in any batch, on any number of threads. A normal draw is one of 4096 equally likely quantiles,
    so it ends at 3.7 standard deviations.
    """
    batch = pack_images(images)
    plan = plan_perturbations(batch.sizes, batch.offsets, operations, keys, expand_canvas=expand_canvas)
    return perturb_packed(batch, plan, seed).images()


def perturb_packed(batch: ImageBatch, plan: PerturbationPlan, seed: int) -> ImageBatch:
    """The same for images that are packed already, by a plan that was made for their sizes and offsets.

    The CPU refuses a plan that leads outside the pixels. CUDA, which would have to wait for the device to look, does
    not: a plan for other images reads and writes memory that is not theirs.
    """
    plan = plan.to(batch.pixels.device)
    pixels = torch.ops.diva_engine.perturb_images.default(
        batch.pixels,
        plan.stages,
        plan.points,
        plan.tables,
        plan.tiles,
        plan.launches,
        signed64(seed),
        plan.scratch_bytes,
        plan.output_bytes,
    )
    return ImageBatch(pixels, plan.offsets, plan.sizes)


def perturb_images_reference(
    images: Sequence[Tensor],
    operations: Sequence[Sequence[ImageOperation]],
    *,
    keys: Sequence[int],
    seed: int,
    expand_canvas: bool = False,
) -> list[Tensor]:
    """The definition, in plain torch. Noise is exact; rotation, blur and low resolution, which the op computes in
    fixed point, are within one grey level of the float64 written here."""
    return [
        reference_image(image, ops, seed, key, expand_canvas)
        for image, ops, key in zip(images, operations, keys, strict=True)
    ]


@torch.library.register_fake("diva_engine::perturb_images")
def _fake(
    pixels: Tensor,
    stages: Tensor,
    points: Tensor,
    tables: Tensor,
    tiles: Tensor,
    launches: list[int],
    seed: int,
    scratch_bytes: int,
    output_bytes: int,
) -> Tensor:
    return pixels.new_empty(output_bytes)
