"""Positions in closed form equal transformers' own get_rope_index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from diva_engine.data.positions import mrope_positions, num_image_tokens
from python_tests.models import VISION_FAMILIES, build_tiny_model

IMAGE = 262  # the tiny tokenizer's <|image_pad|>
MODEL_CLASSES = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
# texts before, between and after the images, and the images' grids in patches
CASES = {
    "no image": ([5], []),
    "one square image": ([3, 7], [(1, 6, 6)]),
    "wide image": ([3, 7], [(1, 4, 20)]),
    "tall image": ([3, 7], [(1, 30, 2)]),
    "three images": ([4, 1, 2, 9], [(1, 6, 6), (1, 2, 14), (1, 8, 4)]),
    "image first": ([0, 4], [(1, 6, 4)]),
    "image last": ([4, 0], [(1, 6, 4)]),
    "smallest image": ([1, 1], [(1, 2, 2)]),
}


@pytest.fixture(scope="module", params=VISION_FAMILIES)
def model(request, tmp_path_factory):
    folder = build_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return MODEL_CLASSES[request.param].from_pretrained(folder).model


def token_row(lengths: list[int], grids: list[tuple[int, int, int]]) -> np.ndarray:
    ids = [10] * lengths[0]
    for length, grid in zip(lengths[1:], grids, strict=True):
        ids += [IMAGE] * num_image_tokens(grid, 2) + [11] * length
    return np.array(ids, dtype=np.int64)


@pytest.mark.parametrize("case", CASES)
def test_positions_equal_those_of_transformers(model, case):
    lengths, grids = CASES[case]
    ids = token_row(lengths, grids)
    row = torch.from_numpy(ids)[None]
    expected, _ = model.get_rope_index(
        row, mm_token_type_ids=(row == IMAGE).int(), image_grid_thw=torch.tensor(grids) if grids else None
    )
    assert mrope_positions(ids, IMAGE, grids, 2).tolist() == expected[:, 0].tolist()


def test_touching_images_are_told_apart_by_their_sizes():
    grids = [(1, 4, 4), (1, 2, 6)]
    positions = mrope_positions(np.full(7, IMAGE), IMAGE, grids, 2)
    assert positions.tolist() == [[0, 0, 0, 0, 2, 2, 2], [0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 2, 3, 4]]


def test_a_text_model_counts_tokens():
    assert mrope_positions(np.arange(4), None, [], 1).tolist() == [[0, 1, 2, 3]] * 3
