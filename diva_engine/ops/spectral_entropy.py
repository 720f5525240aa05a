"""Entropy of the spectrum of patch features: how much there is to see in an image."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diva_engine.ops import library

NO_SPREAD = 1e-12  # of the features' squares: a spread below a millionth of the features is rounding


def spectral_entropy(
    features: Tensor,  # [P, d] bfloat16, float16 or float32; float64 on the CPU too
    offsets: Tensor,  # [B+1] int64: image b is patches offsets[b] to offsets[b+1]
    *,
    max_patches: int | None = None,
) -> Tensor:
    """Durian's perceptual score of each image -> [B] float32 (float64 for float64 features), in nats.

    The image's features are centred over its patches; the eigenvalues of their covariance, as shares of their sum, have
    the Shannon entropy that is returned: 0 if all patches lie on one line, log(rank) at most. An image of no patch, of
    one, or of equal patches has entropy 0. NaN or infinity in an image makes its entropy NaN. No gradient.

    `max_patches`, the patches of the largest image where the caller knows it, saves working memory on CUDA, which takes
    P times the smaller of that and d floats. An image with more is refused on the CPU and NaN on CUDA. Every bit is the
    same in every run and on any number of threads.
    """
    library.refuse_gradient("spectral_entropy", features=features)
    entropy: Tensor = torch.ops.diva_engine.spectral_entropy.default(features, offsets, max_patches)
    return entropy


def spectral_entropy_reference(features: Tensor, offsets: Tensor) -> Tensor:
    """The definition, in plain torch."""
    wide = features if features.dtype == torch.float64 else features.float()
    entropy = wide.new_zeros(len(offsets) - 1)
    for image, (begin, end) in enumerate(pairwise(offsets.tolist())):
        entropy[image] = _image_entropy(wide[begin:end])
    return entropy


def _image_entropy(features: Tensor) -> Tensor:
    num_patches, dimensions = features.shape
    if num_patches < 2:
        return features.new_zeros(())
    centred = features - features.mean(0)
    gram = centred @ centred.T if num_patches <= dimensions else centred.T @ centred
    if gram.trace() <= NO_SPREAD * features.square().sum():
        return features.new_zeros(())
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    entropy: Tensor = torch.special.entr(eigenvalues / eigenvalues.sum()).sum()
    return entropy


@torch.library.register_fake("diva_engine::spectral_entropy")
def _fake(features: Tensor, offsets: Tensor, max_patches: int | None) -> Tensor:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.new_empty(offsets.shape[0] - 1, dtype=dtype)
