"""histogram_entropy beside its definition, OpenCV and numpy, Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.bench_perturb_images import photograph
from bench.harness import OURS, Case, benchmark_cases
from bench.image_peers import library
from diva_engine.ops import histogram_entropy, pack_images
from diva_engine.ops.histogram_entropy import histogram_entropy_reference


def entropy_of_counts(counts: Any) -> float:
    share = np.asarray(counts, np.float64).ravel()
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum())


def one_by_one(images: list[torch.Tensor]) -> dict[str, Callable[[], Any]]:
    arrays = [image.numpy() for image in images]
    pictures = [Image.fromarray(array) for array in arrays]
    found: dict[str, Callable[[], Any]] = {
        "Pillow": lambda: [entropy_of_counts(picture.convert("L").histogram()) for picture in pictures]
    }
    if (cv2 := library("cv2")) is not None:
        cv2.setNumThreads(torch.get_num_threads())

        def opencv(array: Any) -> float:
            grey = cv2.cvtColor(array, cv2.COLOR_RGB2GRAY)
            return entropy_of_counts(cv2.calcHist([grey], [0], None, [256], [0, 256]))

        found["OpenCV"] = lambda: [opencv(array) for array in arrays]
    return found


def cases(device: str) -> Iterator[Case]:
    for count, side in ((64, 512), (16, 1024)) if device == "cpu" else ((64, 512), (256, 1024)):
        images = [photograph(side, seed).to(device) for seed in range(count)]
        batch = pack_images(images)
        contenders = {
            OURS: lambda b=batch: histogram_entropy(b),
            "torch, the definition": lambda b=batch: histogram_entropy_reference(b),
        }
        others = one_by_one(images) if device == "cpu" else {}
        yield Case("histogram_entropy", f"{count} of {side}²", batch.pixels.nbytes, contenders | others)


test_histogram_entropy = benchmark_cases(cases)
