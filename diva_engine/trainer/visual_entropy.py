"""How much there is to see in a question's pictures: measured once, kept in the ledger, handed to the credit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diva_engine import ops
from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.config import DurianConfig
from diva_engine.distributed import current_world, gather_from_all
from diva_engine.policy.model import Policy
from diva_engine.policy.vision import image_features
from diva_engine.records import ScoredGroup


@dataclass(frozen=True)
class VisualEntropy:
    """Fills `ScoredGroup.visual_entropy`: the mean over the images of the question as it stands, in nats."""

    policy: Policy
    ledger: DifficultyLedger
    settings: DurianConfig

    def __call__(self, groups: Sequence[ScoredGroup], step: int) -> tuple[list[ScoredGroup], dict[str, float]]:
        originals = [group for group in groups if group.variant.index == 0]
        refresh = self.settings.refresh_steps
        unseen = [g for g in originals if self.ledger.lacks_visual_entropy(g.variant.problem, step, refresh)]
        for group, entropy in zip(unseen, self._measure(unseen), strict=True):
            self.ledger.set_visual_entropy(group.variant.problem, entropy, step)
        filled = [replace(g, visual_entropy=self.ledger.visual_entropy_of(g.variant.problem)) for g in groups]
        known = [group.visual_entropy for group in filled if not math.isnan(group.visual_entropy)]
        metrics = {"durian/visual_entropy": sum(known) / len(known)} if known else {}
        return filled, metrics | {"durian/questions_looked_at": float(len(unseen))}

    def _measure(self, groups: Sequence[ScoredGroup]) -> list[float]:
        """One number a group; NaN without a picture. Each rank looks at the pictures that it holds."""
        rank = current_world().rank
        own = [i for i, group in enumerate(groups) if group.prompt.holder == rank]
        found = gather_from_all(dict(zip(own, self._measure_own([groups[i] for i in own]), strict=True)))
        entropies = {i: entropy for part in found for i, entropy in part.items()}
        return [entropies[i] for i in range(len(groups))]

    def _measure_own(self, groups: Sequence[ScoredGroup]) -> list[float]:
        if self.settings.entropy == "histogram":
            images = [_pixels(image) for group in groups for image in group.prompt.images]
            entropies = ops.histogram_entropy(images).tolist() if images else []
        else:
            features, offsets = image_features(self.policy, [group.prompt for group in groups])
            entropies = ops.spectral_entropy(features, offsets).tolist()
        found = iter(entropies)
        per_group = [[next(found) for _ in range(_num_images(group))] for group in groups]
        return [sum(values) / len(values) if values else math.nan for values in per_group]


def _pixels(image: Image.Image) -> Tensor:
    """[H, W, 3] uint8."""
    return torch.from_numpy(np.array(image.convert("RGB")))


def _num_images(group: ScoredGroup) -> int:
    grids = group.prompt.image_grid_thw
    return 0 if grids is None else len(grids)
