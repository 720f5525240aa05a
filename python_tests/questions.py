"""A small parquet of questions for tests, in the format people use; its pictures are noise."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from python_tests.prompts import random_image


def encoded_image(seed: int, size: int = 56) -> bytes:
    buffer = io.BytesIO()
    random_image(size, size, seed).save(buffer, format="PNG")
    return buffer.getvalue()


def write_questions(path: Path, count: int = 6) -> Path:
    """Rows with image, paraphrases, steps and a level; the answers are never what a random model says."""
    rows = [
        {
            "id": f"q{i}",
            "problem": f"<image>Count to {i}?",
            "answer": str(1000 + i),
            "images": [{"bytes": encoded_image(i), "path": None}],
            "variant": [f"<image>What comes after {i - 1}?"],
            "step2": ["one ;", "two ;", f"so {1000 + i} ;"],
            "level": i % 3,
        }
        for i in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# A random model is never right, so tests of learning reward what it does by chance: an even number of tokens.
EVEN_LENGTH_REWARD = """
def score(inputs):
    return [{"overall": float(item["response_length"] % 2 == 0), "accuracy": float(item["response_length"] % 2 == 0)}
            for item in inputs]
"""

# By chance half the answers are right, whatever their length: those whose bytes have an odd sum.
# With reward_type=sequential it scores one answer a call.
CHANCE_REWARD = """
def score(inputs):
    if isinstance(inputs, dict):
        return score([inputs])[0]
    right = [float(sum(item["response"].encode()) % 2) for item in inputs]
    return [{"overall": value, "accuracy": value} for value in right]
"""
