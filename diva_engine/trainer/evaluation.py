"""What an evaluation says: answers to the questions as they stand and, beside them, without their images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diva_engine.records import Processor, Prompt, ScoredGroup, UserError, Variant
from diva_engine.rollout.calibration import without_images
from diva_engine.trainer.collect import Encoder
from diva_engine.trainer.json_lines import to_json
from diva_engine.trainer.validate import Validation, column_value


@dataclass(frozen=True)
class TextOnlyEncoder:
    """Poses what `encoder` poses, its images left out."""

    encoder: Encoder
    processor: Processor

    def encode(self, variant: Variant, key: int) -> Prompt:
        return without_images(self.encoder.encode(variant, key), self.processor)


@dataclass(frozen=True)
class Evaluation:
    """Answers with images and, where they were asked for, without."""

    with_image: Validation
    without_image: Validation | None = None

    @property
    def num_questions(self) -> int:
        return len(self.with_image.groups)

    @property
    def text_bias_gap(self) -> float | None:
        """Accuracy with images less accuracy without; near 0, the model answers from the text alone."""
        return None if self.without_image is None else self.with_image.accuracy - self.without_image.accuracy

    @property
    def has_levels(self) -> bool:
        return any(group.variant.problem.difficulty is not None for group in self.with_image.groups)

    def by(self, column: str) -> dict[str, Evaluation]:
        """The questions of each value of a column."""
        parts = self.with_image.by(column)
        blind = {} if self.without_image is None else self.without_image.by(column)
        return {value: Evaluation(part, blind.get(value)) for value, part in parts.items()}

    def numbers(self, ks: Sequence[int] = ()) -> dict[str, Any]:
        """Every number, for JSON; pass@k for the given k."""
        found: dict[str, Any] = {"questions": self.num_questions, "with_image": numbers_of(self.with_image, ks)}
        if self.without_image is not None:
            found |= {"without_image": numbers_of(self.without_image, ks), "text_bias_gap": self.text_bias_gap}
        return found

    def answers(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """One row a question: what was asked, its columns' values, and every answer with its score."""
        blind = {} if self.without_image is None else {g.variant.problem.id: g for g in self.without_image.groups}
        rows = []
        for group in self.with_image.groups:
            problem = group.variant.problem
            row = {"id": problem.id, "origin": problem.origin, "question": problem.text, "answer": problem.answer}
            row |= {"columns": {column: column_value(problem, column) for column in columns}}
            row |= {"with_image": answers_of(group)}
            if problem.id in blind:
                row |= {"without_image": answers_of(blind[problem.id])}
            rows.append(row)
        return rows


def numbers_of(validation: Validation, ks: Sequence[int]) -> dict[str, float]:
    return {
        "accuracy": validation.accuracy,
        **{f"pass@{k}": validation.pass_at(k) for k in ks},
        "format": validation.format,
        "truncated": validation.truncated,
        "mean_length": validation.mean_length,
    }


def answers_of(group: ScoredGroup) -> list[dict[str, Any]]:
    return [
        {
            "response": rollout.text,
            "accuracy": score.accuracy,
            "format": score.format,
            "reward": score.reward,
            "length": len(rollout.token_ids),
            "finish_reason": rollout.finish_reason,
        }
        for rollout, score in zip(group.rollouts, group.scores, strict=True)
    ]


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [1 << i for i in range(n.bit_length())]


def write_report(path: Path, report: dict[str, Any]) -> None:
    _write(path, json.dumps(json.loads(to_json(report)), indent=2, ensure_ascii=False) + "\n")


def write_answers(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    _write(path, "".join(to_json(row) + "\n" for row in rows))


def check_writable(path: Path, option: str) -> None:
    """Raises UserError where a file cannot be put, before an hour of generation is spent."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.absolute().parent}; make it first")


def _write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # a text may hold half a character
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error})") from error
