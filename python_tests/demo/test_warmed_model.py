"""What the finished model can do and cannot, in plain transformers: about three minutes, most of them the build."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from PIL import Image

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from diva_engine.demo.__main__ import main
from diva_engine.demo.warmup import Collator

pytestmark = pytest.mark.slow
PER_LEVEL = 16


class Answerer:
    """The built model, asked greedily."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        self.model = AutoModelForImageTextToText.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder)
        self.frame = Collator(self.tokenizer).frame

    def ask(self, rows: list[dict[str, Any]], begun: list[str], blank: bool = False) -> list[str]:
        """Whole answers, each beginning with its `begun`; `blank` shows a grey image in place of the row's own."""
        images = [Image.open(io.BytesIO(row["images"][0]["bytes"])).convert("RGB") for row in rows]
        if blank:
            images = [Image.new("RGB", image.size, (128, 128, 128)) for image in images]
        prompts = [
            self.frame.replace("QUESTION", row["problem"].replace("<image>", "")).replace(
                "<|image_pad|>", "<|image_pad|>" * 9
            )
            + start
            for row, start in zip(rows, begun, strict=True)
        ]
        texts = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        pixels = self.image_processor(images=images, return_tensors="pt")
        is_image = (texts["input_ids"] == self.model.config.image_token_id).int()
        with torch.inference_mode():
            ids = self.model.generate(**texts, **pixels, mm_token_type_ids=is_image, max_new_tokens=64)
        said = self.tokenizer.batch_decode(ids[:, texts["input_ids"].shape[1] :], skip_special_tokens=True)
        return [f"{start} {text}".strip() for start, text in zip(begun, said, strict=True)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "demo"
    assert main(["build", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def answerer(built: Path) -> Answerer:
    return Answerer(built / "model")


@pytest.fixture(scope="module")
def rows(built: Path) -> list[dict[str, Any]]:
    of_level: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in pyarrow.parquet.read_table(built / "tiles_test.parquet").to_pylist():
        of_level[row["level"]].append(row)
    return [row for level in sorted(of_level) for row in of_level[level][:PER_LEVEL]]


def accuracy_by_level(rows: list[dict[str, Any]], answers: list[str]) -> dict[int, float]:
    right: dict[int, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        boxed = re.search(r"\\boxed\{ (\S+) \}$", answer)
        right[row["level"]].append(boxed is not None and boxed[1] == row["answer"])
    return {level: sum(hits) / len(hits) for level, hits in right.items()}


def test_easy_levels_are_solved_and_hard_ones_are_not(answerer: Answerer, rows: list[dict[str, Any]]) -> None:
    answers = answerer.ask(rows, [""] * len(rows))
    accuracy = accuracy_by_level(rows, answers)
    assert min(accuracy[level] for level in (1, 2, 3)) >= 0.8
    assert (accuracy[4] + accuracy[5] + accuracy[6]) / 3 <= 0.5
    in_form = [re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}", answer) is not None for answer in answers]
    assert sum(in_form) >= 0.95 * len(in_form)


def test_without_the_image_nothing_is_known(answerer: Answerer, rows: list[dict[str, Any]]) -> None:
    accuracy = accuracy_by_level(rows, answerer.ask(rows, [""] * len(rows), blank=True))
    assert sum(accuracy.values()) / len(accuracy) <= 0.12


def test_the_first_steps_as_the_answers_beginning_help(answerer: Answerer, rows: list[dict[str, Any]]) -> None:
    hard = [row for row in rows if row["level"] >= 5]
    begun = ["<think> " + " ".join(row["step2"][:-1]) for row in hard]
    alone = accuracy_by_level(hard, answerer.ask(hard, [""] * len(hard)))
    helped = accuracy_by_level(hard, answerer.ask(hard, begun))
    assert min(helped[level] - alone[level] for level in helped) >= 0.2
