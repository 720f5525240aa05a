"""A question as the demo's sources draw it, and the parquet file it is written to.

Columns: id, problem, answer, images (list of {bytes, path}), difficulty, level, variant (other wordings), step2
(worked steps). A whole answer is "<think> " + " ".join(steps) + " </think> \\boxed{ answer }". Each step carries its
own closing ";", so "<think> " + " ".join(steps[:k]) is the beginning of an answer that the model itself could write.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("problem", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("images", pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))),
        ("difficulty", pyarrow.float64()),
        ("level", pyarrow.int64()),
        ("variant", pyarrow.list_(pyarrow.string())),
        ("step2", pyarrow.list_(pyarrow.string())),
    ]
)


# What each image token shows, in order: a colour and a number or sign, None where it shows none.
Shown = tuple[tuple[str | None, str | None], ...]


@dataclass(frozen=True)
class Question:
    """One row of a parquet file."""

    id: str
    problem: str  # "<image>" marks the image's place
    answer: str
    image: Image.Image
    level: int  # 1..num_levels
    num_levels: int
    paraphrases: tuple[str, ...]
    steps: tuple[str, ...]
    shown: Shown  # for the warm-up; not written to the file

    @property
    def difficulty(self) -> float:
        """The level, spread evenly over the trainer's scale of 1 to 9."""
        return 1.0 + 8.0 * (self.level - 1) / (self.num_levels - 1)

    @property
    def solution(self) -> str:
        """The whole answer a model is taught to give."""
        return f"<think> {' '.join(self.steps)} </think> \\boxed{{ {self.answer} }}"


def write_parquet(path: Path, questions: Iterable[Question]) -> int:
    """Write the questions in their order; returns how many. The same questions give the same bytes."""
    rows = [_to_row(question) for question in questions]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), path)
    return len(rows)


def _to_row(question: Question) -> dict[str, object]:
    encoded = io.BytesIO()
    question.image.save(encoded, "PNG")
    return {
        "id": question.id,
        "problem": question.problem,
        "answer": question.answer,
        "images": [{"bytes": encoded.getvalue(), "path": f"{question.id}.png"}],
        "difficulty": question.difficulty,
        "level": question.level,
        "variant": list(question.paraphrases),
        "step2": list(question.steps),
    }
