"""Multimodal rotary positions of a prompt in closed form, as Qwen2-VL, Qwen2.5-VL and Qwen3-VL define them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Grid = tuple[int, int, int]  # temporal, height, width of an image in patches


def num_image_tokens(grid: Grid, merge_size: int) -> int:
    return grid[0] * grid[1] * grid[2] // merge_size**2


def mrope_positions(
    token_ids: npt.NDArray[np.int64],  # [L], placeholders expanded
    image_token_id: int | None,
    grids: Sequence[Grid],
    merge_size: int,
) -> npt.NDArray[np.int64]:  # [3, L]
    """Positions (temporal, height, width) of every token.

    Text advances all three together. An image's tokens stand at its start plus their place in the merged grid, and the
    text after it resumes one beyond the image's longer side.
    """
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    starts = _image_starts(token_ids, image_token_id, grids, merge_size)
    token = position = 0
    for start, (num_frames, rows, columns) in zip(starts, grids, strict=True):
        num_text = start - token
        positions[:, token:start] = position + np.arange(num_text)
        position += num_text
        block = np.indices((num_frames, rows // merge_size, columns // merge_size)).reshape(3, -1)
        token = start + block.shape[1]
        positions[:, start:token] = position + block
        position += max(rows, columns) // merge_size
    positions[:, token:] = position + np.arange(len(token_ids) - token)
    return positions


def _image_starts(
    token_ids: npt.NDArray[np.int64], image_token_id: int | None, grids: Sequence[Grid], merge_size: int
) -> list[int]:
    """Where each image's block of placeholders begins; blocks may touch."""
    if image_token_id is None or not grids:
        return []
    places = np.flatnonzero(token_ids == image_token_id)
    sizes = [num_image_tokens(grid, merge_size) for grid in grids]
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(places[first]) for first in firsts]
