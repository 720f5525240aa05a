"""spectral_entropy beside its definition and, for images of one size, batched torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness import OURS, Case, benchmark_cases
from diva_engine.ops import spectral_entropy
from diva_engine.ops.spectral_entropy import spectral_entropy_reference


def batched(features: Tensor) -> Tensor:
    """Images of one size, [B, P, d] with P <= d."""
    centred = features - features.mean(1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(centred @ centred.mT).clamp(min=0)
    return torch.special.entr(eigenvalues / eigenvalues.sum(1, keepdim=True)).sum(1)


def cases(device: str) -> Iterator[Case]:
    shapes = ((32, 16, 128), (8, 256, 2048), (2, 1024, 2048))
    for images, patches, dimensions in shapes if device == "cpu" else ((128, 256, 3584), (32, 1024, 3584)):
        features = torch.randn(images * patches, dimensions, device=device)
        offsets = torch.arange(0, images * patches + 1, patches, device=device)
        yield Case(
            "spectral_entropy",
            f"{images} images of {patches:,} x {dimensions:,}",
            features.nbytes,
            {
                OURS: lambda f=features, o=offsets, p=patches: spectral_entropy(f, o, max_patches=p),
                "torch, the definition": lambda f=features, o=offsets: spectral_entropy_reference(f, o),
                "torch, equal images only": lambda f=features, b=images: batched(f.view(b, -1, f.shape[1])),
            },
        )


test_spectral_entropy = benchmark_cases(cases)
