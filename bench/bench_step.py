"""What a DIVA step costs beside the model, as a share of the step: questions, variants, prompts, advantages, ledger.

    python -m bench.bench_step

One step as in the paper's runs: 256 questions with one variant each, images of 512 x 512, 5 rollouts a prompt, a ledger
of 18,000 questions. CPU seconds of this process, median and range of the repeats; the share is that of a 60 s step on
two cores for each of 8 GPUs. A line goes to bench/results/step.jsonl.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from bench.bench_data import Measurement, measure, photo, qwen_processor, write_results
from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.plans import PlanContext, ask_originals_and_variants
from diva_engine.algorithm.recipes.diva import RECIPE
from diva_engine.algorithm.variants import original
from diva_engine.config import Config
from diva_engine.data.dataset import open_problems
from diva_engine.data.perturb import perturb
from diva_engine.data.prompts import PromptEncoder
from diva_engine.records import ImageOperation, Problem, Prompt, Request, Rollout, Score, ScoredGroup

RESULTS = Path(__file__).parent / "results" / "step.jsonl"
QUESTIONS = 256
ROLLOUTS = 5
LEDGER_ROWS = 18_000
NUM_GPUS = 8
STEP_S, CORES_PER_GPU = 60, 2
PLAIN_OPERATIONS = (ImageOperation("rotate", 30.0), ImageOperation("gaussian", 0.45))


def write_questions(path: Path, side: int) -> None:
    """Questions of every level, with what each kind of variant needs."""
    question = "<image>" + "In the figure, find the measure of the angle at the marked corner. " * 3
    rows = [
        {
            "id": str(row),
            "problem": question,
            "answer": "40",
            "images": [{"bytes": photo(side, row), "path": None}],
            "difficulty": 1 + row % 9,
            "variant": ["<image>What is the angle at the marked corner?"] * 3,
            "step2": ["The sides are equal.", "So are the angles.", "They sum to 180.", "It is 40."],
        }
        for row in range(QUESTIONS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def full_ledger(config: Config) -> DifficultyLedger:
    """One in which every question of a large dataset was met once; half of the answers were right, so levels stay."""
    ledger = DifficultyLedger(config.difficulty)
    prompt = Prompt(token_ids=(), position_ids=torch.empty(3, 0))
    groups = []
    for row in range(LEDGER_ROWS):
        problem = Problem(id=str(row), text="", answer="", difficulty=1 + row % 9)
        request = Request(original(problem, 1 + row % 9), 2)
        groups.append(ScoredGroup(request, prompt, (), (Score(1, 1, 1), Score(0, 0, 1))))
    ledger.observe(groups, step=0)
    return ledger


def scored(requests: Sequence[Request], prompt: Prompt) -> list[ScoredGroup]:
    """Groups as the rewards would leave them: right or wrong by a coin, well-formed mostly."""
    draw = random.Random(0)
    rollout = Rollout(tuple(range(300)), (-1.0,) * 300, "stop", "text", 0)
    groups = []
    for request in requests:
        scores = []
        for _ in range(request.num_rollouts):
            accuracy, form = float(draw.random() < 0.5), float(draw.random() < 0.9)
            scores.append(Score(0.9 * accuracy + 0.1 * form, accuracy, form))
        groups.append(ScoredGroup(request, prompt, (rollout,) * request.num_rollouts, tuple(scores)))
    return groups


def measure_step(path: Path, repeats: int) -> list[Measurement]:
    config = Config()
    problem_set = open_problems(str(path))
    ledger = full_ledger(config)
    processor = qwen_processor()

    def questions() -> list[Problem]:
        return [problem_set[index] for index in range(QUESTIONS)]

    problems = questions()

    def plan() -> list[Request]:
        return next(ask_originals_and_variants(problems, PlanContext(config, ledger, step=1)))

    requests = plan()

    def encode() -> list[Prompt]:
        encoder = PromptEncoder(processor, max_prompt_length=100_000)
        return [encoder.encode(request.variant, key=number) for number, request in enumerate(requests)]

    prompts = encode()
    pictures = [prompt.images[0] for prompt in prompts]
    groups = scored(requests, prompts[0])

    def perturb_all() -> None:
        for number, picture in enumerate(pictures):
            perturb([picture], PLAIN_OPERATIONS, number)

    stages: dict[str, Callable[[], object]] = {
        "read 256 questions": questions,
        "draw their variants": plan,
        "512 prompts, decoded, perturbed as drawn, processed": encode,
        "of which: perturbing, if all 512 images had 2 operations": perturb_all,
        "2,560 advantages": lambda: RECIPE.credit(groups, config),
        "ledger: 256 of 18,000 questions": lambda: ledger.observe(groups, 1),
    }
    return [measure(stage, 1, repeats, run) for stage, run in stages.items()]


def print_stages(title: str, measured: Sequence[Measurement]) -> None:
    table = Table(title=f"{title}; CPU time, {torch.get_num_threads()} threads")
    for heading in ("stage", "ms", "least", "most"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for one in measured:
        table.add_row(one.stage, *(f"{1e3 * seconds:.4g}" for seconds in (one.median_s, one.least_s, one.most_s)))
    Console(width=100).print(table)
    total = sum(one.median_s for one in measured if not one.stage.startswith("of which"))
    share = total / (STEP_S * CORES_PER_GPU * NUM_GPUS)
    print(f"in all {total:.2f} CPU s, {share:.2%} of {STEP_S} s on {CORES_PER_GPU} cores each for {NUM_GPUS} GPUs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the square images, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        path = Path(folder) / "questions.parquet"
        write_questions(path, options.side)
        measured = measure_step(path, options.repeats)
    print_stages(f"a step of {QUESTIONS} questions, images of {options.side} x {options.side}", measured)
    write_results(RESULTS, vars(options), measured)


if __name__ == "__main__":
    main()
