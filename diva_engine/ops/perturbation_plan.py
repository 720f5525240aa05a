"""Turns lists of image operations into what the compiled op reads: stages, pointwise operations, weights, launches.

Everything that needs more than integers (sines, square roots, quantiles) happens here, once, on the host. What is left
for the devices is integer arithmetic, which has the same bits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diva_engine.ops.image_batch import aligned_offsets
from diva_engine.ops.perturbation_tables import (
    NORMAL_BITS,
    blur_weights,
    cosine_sine,
    normal_quantiles,
    resample_table,
)
from diva_engine.records import ImageOperation

# Shared with csrc/perturb_images/perturb_images.h
COPY, ROTATE, BLUR_ROWS, BLUR_COLUMNS, RESAMPLE = range(5)
GAUSSIAN, SPECKLE, SALT_PEPPER, OCCLUSION = range(4)
INPUT, PING, PONG, OUTPUT = range(4)
TILE_PIXELS = 2048  # of a CUDA block
STAGE_FIELDS, POINT_FIELDS = 19, 4
RESULT_HEIGHT, RESULT_WIDTH, FIRST_TILE = 6, 7, 18  # of a stage's fields

Size = tuple[int, int, int]  # H, W, C


@dataclass(frozen=True)
class Point:
    kind: int
    slot: int
    a: int
    b: int = 0


@dataclass(frozen=True)
class Stage:
    """One gather and the pointwise operations on its result."""

    kind: int
    source: Size
    result: Size
    parameters: tuple[int, int, int, int] = (0, 0, 0, 0)
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class PerturbationPlan:
    """How to perturb the images of one batch. Holds no seed: one plan serves many seeds."""

    stages: Tensor  # [stages, 19] int64
    points: Tensor  # [pointwise operations, 4] int64
    tables: Tensor  # [.] int32: quantiles of the normal distribution, weights
    tiles: Tensor  # [.] int32: the stage of each CUDA block, launch after launch
    launches: tuple[int, ...]  # for every launch: rotations in it, blocks
    offsets: tuple[int, ...]  # [B] of the results
    sizes: tuple[Size, ...]  # [B] of the results
    scratch_bytes: int
    output_bytes: int

    def to(self, device: torch.device) -> PerturbationPlan:
        if device == self.stages.device:
            return self
        moved = (t.to(device, non_blocking=True) for t in (self.stages, self.points, self.tables, self.tiles))
        stages, points, tables, tiles = moved
        return replace(self, stages=stages, points=points, tables=tables, tiles=tiles)


@dataclass
class Tables:
    """The integer tables of a plan, each stored once."""

    parts: list[Tensor] = field(default_factory=lambda: [normal_quantiles()])
    offset_of: dict[tuple[str, int, int], int] = field(default_factory=dict)
    length: int = 1 << NORMAL_BITS

    def add(self, key: tuple[str, int, int], table: Tensor) -> int:
        if key not in self.offset_of:
            self.offset_of[key] = self.length
            self.parts.append(table.reshape(-1))
            self.length += table.numel()
        return self.offset_of[key]


def rotated_size(size: Size, degrees: float) -> Size:
    """The smallest canvas that holds the rotated image."""
    height, width, channels = size
    cosine, sine = (abs(value) for value in cosine_sine(degrees))
    fraction = 1e-6  # what rounding may add to a whole number
    new_height = math.ceil(width * sine + height * cosine - fraction)
    new_width = math.ceil(width * cosine + height * sine - fraction)
    return max(1, new_height), max(1, new_width), channels


def check_operation(operation: ImageOperation) -> None:
    if not math.isfinite(operation.strength):
        raise ValueError(f"the strength of {operation.name} must be a number, not {operation.strength}")
    if operation.name != "rotate" and not 0.0 <= operation.strength <= 1.0:
        raise ValueError(f"the strength of {operation.name} must be in [0, 1], not {operation.strength}")


def make_point(operation: ImageOperation, slot: int, size: Size) -> Point:
    """See `perturb_images` for what the strengths mean."""
    strength = operation.strength
    if operation.name == "gaussian":
        return Point(GAUSSIAN, slot, round(64 * strength * 256))
    if operation.name == "speckle":
        return Point(SPECKLE, slot, round(strength / 2 * 4096))
    if operation.name == "salt_pepper":
        return Point(SALT_PEPPER, slot, round(strength / 4 * 65536))
    side = math.sqrt(strength / 4)
    return Point(OCCLUSION, slot, round(side * size[0]), round(side * size[1]))


def make_stages(operation: ImageOperation, size: Size, expand_canvas: bool, tables: Tables) -> list[Stage]:
    """The stages of an operation that looks at neighbours."""
    height, width, channels = size
    if operation.name == "rotate":
        cosine, sine = (round(value * 2**32) for value in cosine_sine(operation.strength))
        result = rotated_size(size, operation.strength) if expand_canvas else size
        if math.prod(result) >= 2**31:
            raise ValueError(f"rotate would need a canvas of {result[0]} x {result[1]}, which is too large")
        return [Stage(ROTATE, size, result, (cosine, sine, 0, 0))]
    if operation.name == "blur":
        std = operation.strength * min(height, width) / 64
        weights = blur_weights(std)
        parameters = (len(weights) - 1, tables.add(("blur", len(weights), round(std * 2**32)), weights), 0, 0)
        return [Stage(BLUR_ROWS, size, size, parameters), Stage(BLUR_COLUMNS, size, size, parameters)]
    shrink = 1 + 2 * operation.strength
    small = max(1, round(height / shrink)), max(1, round(width / shrink)), channels
    return [resample_stage(size, small, tables), resample_stage(small, size, tables)]


def resample_stage(source: Size, result: Size, tables: Tables) -> Stage:
    parameters = []
    for axis in (1, 0):  # columns, rows
        table = resample_table(source[axis], result[axis])
        parameters += [table.shape[1] - 1, tables.add(("resample", source[axis], result[axis]), table)]
    return Stage(RESAMPLE, source, result, (parameters[0], parameters[1], parameters[2], parameters[3]))


def image_stages(operations: Sequence[ImageOperation], size: Size, expand_canvas: bool, tables: Tables) -> list[Stage]:
    """The stages of one image: each pointwise operation joins the stage before it."""
    stages: list[Stage] = []
    for slot, operation in enumerate(operations):
        check_operation(operation)
        if operation.name in ("rotate", "blur", "low_resolution"):
            stages += make_stages(operation, size, expand_canvas, tables)
            size = stages[-1].result
        elif operation.name in ("gaussian", "speckle", "salt_pepper", "occlusion"):
            stages = stages or [Stage(COPY, size, size)]
            points = (*stages[-1].points, make_point(operation, slot, size))
            stages[-1] = replace(stages[-1], points=points)
        else:
            raise ValueError(f"there is no image operation {operation.name!r}")
    return stages or [Stage(COPY, size, size)]


def plan_perturbations(
    sizes: Sequence[Size],  # [B]
    offsets: Sequence[int],  # [B] first byte of each image in the pixels
    operations: Sequence[Sequence[ImageOperation]],  # [B]
    keys: Sequence[int],  # [B] what tells the images' noise apart, any 64-bit numbers
    *,
    expand_canvas: bool = False,
) -> PerturbationPlan:
    """Plan the perturbation of a batch. The plan is on the CPU; `to` moves it."""
    if not len(sizes) == len(offsets) == len(operations) == len(keys):
        raise ValueError(
            f"{len(sizes)} images, {len(operations)} lists of operations and {len(keys)} keys: "
            "there must be as many of each"
        )
    tables = Tables()
    images = [image_stages(ops, size, expand_canvas, tables) for ops, size in zip(operations, sizes, strict=True)]
    results = tuple(stages[-1].result for stages in images)
    result_offsets, output_bytes = aligned_offsets(results)
    scratch_offsets, half = scratch_layout(images)
    rows, points = plan_rows(images, keys, offsets, result_offsets, scratch_offsets)
    tiles, launches = plan_launches(images, rows)
    return PerturbationPlan(
        stages=torch.tensor(rows, dtype=torch.int64).reshape(-1, STAGE_FIELDS),
        points=torch.tensor(points, dtype=torch.int64).reshape(-1, POINT_FIELDS),
        tables=torch.cat(tables.parts),
        tiles=tiles,
        launches=launches,
        offsets=tuple(result_offsets),
        sizes=results,
        scratch_bytes=2 * half,
        output_bytes=output_bytes,
    )


def scratch_layout(images: list[list[Stage]]) -> tuple[list[int], int]:
    """Where each image's intermediate results lie, in both halves of the scratch memory, and how long a half is."""
    largest = [max((math.prod(stage.result) for stage in stages[:-1]), default=0) for stages in images]
    return aligned_offsets([(size, 1, 1) for size in largest])


def plan_rows(
    images: list[list[Stage]],
    keys: Sequence[int],
    offsets: Sequence[int],
    result_offsets: Sequence[int],
    scratch_offsets: Sequence[int],
) -> tuple[list[list[int]], list[list[int]]]:
    """One row a stage and one a point, image after image, with the fields of Stage and Point in perturb_images.h."""
    rows: list[list[int]] = []
    points: list[list[int]] = []
    for i, stages in enumerate(images):
        read = (INPUT, offsets[i])
        for number, stage in enumerate(stages):
            is_last = number == len(stages) - 1
            write = (OUTPUT, result_offsets[i]) if is_last else ((PING, PONG)[number % 2], scratch_offsets[i])
            shape = (stage.source[2], *stage.source[:2], *stage.result[:2])
            place = (*read, *write, len(points), len(stage.points))
            rows.append([stage.kind, i, signed64(keys[i]), *shape, *place, *stage.parameters, 0])
            points += [[point.kind, point.slot, point.a, point.b] for point in stage.points]
            read = write
    return rows, points


def plan_launches(images: list[list[Stage]], rows: list[list[int]]) -> tuple[Tensor, tuple[int, ...]]:
    """The stage of every CUDA block: launch n does stage n of all images that have one. Sets `first_tile` in the rows.

    Each launch's share of the table begins with the stages that rotate: their border colour is found first.
    """
    first_rows = [0]
    for stages in images:
        first_rows.append(first_rows[-1] + len(stages))
    parts: list[Tensor] = []
    launches: list[int] = []
    for level in range(max((len(stages) for stages in images), default=0)):
        members = [first_rows[i] + level for i, stages in enumerate(images) if level < len(stages)]
        rotations = [row for row in members if rows[row][0] == ROTATE]
        counts: list[int] = []
        num_blocks = 0
        for row in members:
            rows[row][FIRST_TILE] = num_blocks
            counts.append(-(-rows[row][RESULT_HEIGHT] * rows[row][RESULT_WIDTH] // TILE_PIXELS))
            num_blocks += counts[-1]
        blocks = torch.repeat_interleave(torch.tensor(members, dtype=torch.int32), torch.tensor(counts))
        parts += [torch.tensor(rotations, dtype=torch.int32), blocks]
        launches += [len(rotations), len(blocks)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32), tuple(launches)


def signed64(value: int) -> int:
    """The same 64 bits as a signed number."""
    return (value + 2**63) % 2**64 - 2**63
