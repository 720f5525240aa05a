"""From a parquet to prompts: rows a second, with perturbation off and on, beside the bare libraries.

    python -m bench.bench_data --rows 256 --side 512

Times are CPU seconds of this process (one thread computes), median and range of the repeats, each from a cold cache:

    open        the parquet's texts read once, every row checked
    check       every prompt's length from its image header, as before the first step
    read        rows of encoded images, nothing decoded
    library     Pillow decodes, the model's image processor and tokenizer run, no engine code: the least a prompt costs
    original    rows to prompts, images decoded and processed
    again       the same rows while their images are still kept
    perturbed   rows to prompts, four operations on every image
    order       the order of an epoch of 50,000 questions

One JSON line with device, versions and commit goes to bench/results/data.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.harness import environment
from diva_engine.data.dataset import ProblemSet, open_problems
from diva_engine.data.prompts import PromptEncoder
from diva_engine.data.sampler import question_order
from diva_engine.records import ImageOperation, Problem, Processor, Variant
from python_tests.models import build_tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "data.jsonl"
EPOCH_QUESTIONS = 50_000
OPERATIONS = (  # the four of DIVA's hardest perturbation
    ImageOperation("rotate", 30.0),
    ImageOperation("gaussian", 0.45),
    ImageOperation("salt_pepper", 0.45),
    ImageOperation("blur", 0.45),
)


@dataclass(frozen=True)
class Measurement:
    """CPU seconds of one stage over `items` rows: median, least and most of the repeats."""

    stage: str
    items: int
    median_s: float
    least_s: float
    most_s: float

    @property
    def rows_per_s(self) -> float:
        return self.items / self.median_s

    @property
    def ms_per_row(self) -> float:
        return 1e3 * self.median_s / self.items


def photo(side: int, seed: int) -> bytes:
    """A JPEG of smooth shapes with the noise of a sensor."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = smooth + draw.normal(0, 4, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_questions(path: Path, num_rows: int, side: int) -> None:
    question = "<image>" + "In the figure, find the measure of the angle at the marked corner. " * 3
    rows = [
        {"id": str(row), "problem": question, "answer": "40", "images": [{"bytes": photo(side, row), "path": None}]}
        for row in range(num_rows)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def qwen_processor() -> Processor:
    """Qwen2.5-VL's image processor with its published settings, and a byte-level tokenizer."""
    from transformers import Qwen2VLImageProcessor

    tokenizer = build_tiny_tokenizer()
    return Processor(
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056}),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        merge_size=2,
        banned_ids=(),
        stop_ids=(),
    )


def original(problem: Problem) -> Variant:
    return Variant(problem, index=0, kind="original", text=problem.text, difficulty=5.0)


def perturbed(problem: Problem) -> Variant:
    return Variant(
        problem, index=1, kind="perturbation", text=problem.text, difficulty=11.0, shift=6, operations=OPERATIONS
    )


def encode_all(problems: ProblemSet, encoder: PromptEncoder, pose: Callable[[Problem], Variant]) -> None:
    for index in range(len(problems)):
        encoder.encode(pose(problems[index]), key=index)


def run_library(problems: ProblemSet, processor: Processor) -> None:
    for problem in problems:
        image = Image.open(io.BytesIO(problem.images[0])).convert("RGB")
        processor.image_processor(images=[image], return_tensors="pt")  # type: ignore[misc]
        processor.tokenizer(problem.text)


def measure(stage: str, items: int, repeats: int, run: Callable[[], object]) -> Measurement:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return Measurement(stage, items, statistics.median(seconds), min(seconds), max(seconds))


def measure_all(path: Path, repeats: int) -> list[Measurement]:
    processor = qwen_processor()
    problems = open_problems(str(path))  # also converts the parquet, once for all repeats
    kept = PromptEncoder(processor, max_prompt_length=100_000, cache_bytes=2**40)
    encode_all(problems, kept, original)

    def cold() -> PromptEncoder:
        return PromptEncoder(processor, max_prompt_length=100_000)

    stages: dict[str, Callable[[], object]] = {
        "open": lambda: open_problems(str(path)),
        "check": lambda: problems.drop_unusable(cold().check),
        "read": lambda: list(problems),
        "library": lambda: run_library(problems, processor),
        "original": lambda: encode_all(problems, cold(), original),
        "again": lambda: encode_all(problems, kept, original),
        "perturbed": lambda: encode_all(problems, cold(), perturbed),
    }
    measured = [measure(stage, len(problems), repeats, run) for stage, run in stages.items()]
    order = measure("order", EPOCH_QUESTIONS, repeats, lambda: question_order(EPOCH_QUESTIONS, seed=1, epoch=0))
    return [*measured, order]


def print_table(title: str, measured: Sequence[Measurement]) -> None:
    table = Table(title=f"{title}; CPU time, {torch.get_num_threads()} threads")
    for heading in ("stage", "rows/s", "ms a row", "least", "most"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for one in measured:
        bounds = (f"{1e3 * bound / one.items:.4g}" for bound in (one.least_s, one.most_s))
        table.add_row(one.stage, f"{one.rows_per_s:,.0f}", f"{one.ms_per_row:.4g}", *bounds)
    Console().print(table)


def write_results(path: Path, options: Mapping[str, Any], measured: Sequence[Measurement]) -> None:
    """Appends one JSON line: device, versions and commit, the options, every stage."""
    line = {"environment": environment(), "options": options, "stages": [asdict(one) for one in measured]}
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--side", type=int, default=512, help="of the square images, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        path = Path(folder) / "questions.parquet"
        write_questions(path, options.rows, options.side)
        measured = measure_all(path, options.repeats)
    print_table(f"{options.rows} rows, one JPEG of {options.side} x {options.side} each", measured)
    write_results(RESULTS, vars(options), measured)


if __name__ == "__main__":
    main()
