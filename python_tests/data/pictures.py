"""Pictures and processors that the data tests share."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from transformers import Qwen2VLImageProcessor

from diva_engine.records import Problem, Processor, Variant
from python_tests.models import build_tiny_tokenizer


def random_picture(width: int = 84, height: int = 56, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_png(width: int = 84, height: int = 56, seed: int = 0) -> bytes:
    return encoded(random_picture(width, height, seed))


@cache
def tiny_processor(patch_size: int = 14) -> Processor:
    """A byte-level tokenizer and a Qwen image processor, without a model."""
    tokenizer = build_tiny_tokenizer()
    tile = (2 * patch_size) ** 2
    return Processor(
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessor(
            patch_size=patch_size, size={"shortest_edge": tile, "longest_edge": 64 * tile}
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        merge_size=2,
        banned_ids=(),
        stop_ids=(),
    )


def problem_of(text: str, *images: bytes, id: str = "q", **fields: Any) -> Problem:
    return Problem(id=id, text=text, answer="1", images=images, origin="a.parquet:0", **fields)


def original(problem: Problem, **fields: Any) -> Variant:
    return Variant(problem=problem, index=0, kind="original", text=problem.text, difficulty=5.0, **fields)
