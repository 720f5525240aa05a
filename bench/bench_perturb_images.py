"""perturb_images beside OpenCV, numpy, Pillow, plain torch, torchvision v2 and kornia: images in memory, no codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image

from bench import image_peers
from bench.harness import OURS, Case, benchmark_cases
from bench.image_peers import CHAIN, DEGREES, STRENGTH
from diva_engine.ops import pack_images, perturb_images, perturb_packed, plan_perturbations
from diva_engine.records import ImageOperation

NAMES = ("gaussian", "speckle", "salt_pepper", "rotate", "blur", "low_resolution", "occlusion")


def operation(name: str) -> ImageOperation:
    return ImageOperation(name, DEGREES if name == "rotate" else STRENGTH)


def photograph(side: int, seed: int) -> torch.Tensor:
    """[side, side, 3] uint8: smooth shapes and a little sensor noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 16, 16, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[0].permute(1, 2, 0)
    noisy = smooth + 4 * torch.randn(side, side, 3, generator=generator)
    return noisy.clamp(0, 255).byte().contiguous()


def ours(images: list[torch.Tensor], chain: list[ImageOperation]) -> dict[str, Callable[[], Any]]:
    batch, lists, keys = pack_images(images), [chain] * len(images), range(len(images))
    plan = plan_perturbations(batch.sizes, batch.offsets, lists, keys).to(batch.pixels.device)
    return {
        OURS: lambda: perturb_packed(batch, plan, 1),
        "diva_engine, from a list": lambda: perturb_images(images, lists, keys=keys, seed=1),
    }


def one_by_one(change: Callable[[Any], Any], images: list[Any]) -> Callable[[], Any]:
    return lambda: [change(image) for image in images]


def peers(name: str, images: list[torch.Tensor]) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    batch = torch.stack(images).permute(0, 3, 1, 2).contiguous()
    if batch.is_cpu:
        arrays = [image.numpy() for image in images]
        each = image_peers.with_chain(image_peers.opencv_functions())
        if name in each:
            found["OpenCV and numpy"] = one_by_one(each[name], arrays)
        if name in (pillow := image_peers.pillow_functions()):
            found["Pillow"] = one_by_one(pillow[name], [Image.fromarray(array) for array in arrays])
    libraries = {
        "torch": image_peers.torch_functions(),
        "torchvision v2": image_peers.torchvision_functions(),
        "kornia": image_peers.kornia_functions(),
    }
    for label, functions in libraries.items():
        if name in (functions := image_peers.with_chain(functions)):
            found[label] = lambda change=functions[name]: change(batch)
    return found


def cases(device: str) -> Iterator[Case]:
    for count, side in ((64, 512),) if device == "cpu" else ((64, 512), (256, 512), (256, 1024)):
        images = [photograph(side, seed).to(device) for seed in range(count)]
        chains = {name: [operation(name)] for name in NAMES} | {"chain of four": [operation(name) for name in CHAIN]}
        for name, chain in chains.items():
            moved = 2 * sum(image.numel() for image in images)
            yield Case(
                "perturb_images", f"{name}, {count} of {side}²", moved, ours(images, chain) | peers(name, images)
            )


test_perturb_images = benchmark_cases(cases)
