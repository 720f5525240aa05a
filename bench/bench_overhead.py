"""What a DIVA step costs beside the model, as a share of the step: questions, variants, prompts, advantages, ledger.

    python -m bench.bench_overhead

One step as in the paper's runs: 256 questions with one variant each, images of 512 x 512, 5 rollouts a prompt, a ledger
of 18,000 questions. CPU seconds of this process, median and range of the repeats; the share is that of a 60 s step on
two cores for each GPU, of which there are 8 or one. Prompts are made ahead in a run (data.prefetch), while the engine
generates: then the step itself waits for the stages that are left and for taking the prompts. A line goes to
bench/results/overhead.jsonl.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
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
from diva_engine.data.prefetch import PromptPrefetcher
from diva_engine.data.prompts import PromptEncoder
from diva_engine.records import ImageOperation, Problem, Prompt, Request, Rollout, Score, ScoredGroup

RESULTS = Path(__file__).parent / "results" / "overhead.jsonl"
QUESTIONS = 256
ROLLOUTS = 5
LEDGER_ROWS = 18_000
GPUS = (8, 1)
STEP_S, CORES_PER_GPU = 60, 2
ENCODE = "512 prompts, decoded, perturbed as drawn, processed"
PERTURB = "of which: perturbing, if all 512 images had 2 operations"
TAKE = "taking the 512 prompts, made ahead"
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
    requests, stages = stages_of_a_step(path)
    heavy = (ENCODE, PERTURB)
    measured = [measure(stage, 1, repeats if stage in heavy else 20 * repeats, run) for stage, run in stages.items()]
    encoder = PromptEncoder(qwen_processor(), max_prompt_length=100_000)
    return [*measured, measure_taking(requests, encoder, repeats)]


def stages_of_a_step(path: Path) -> tuple[list[Request], dict[str, Callable[[], object]]]:
    """What the step asks, and all that it does beside the model, stage by stage."""
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

    return requests, {
        "read 256 questions": questions,
        "draw their variants": plan,
        ENCODE: encode,
        PERTURB: perturb_all,
        "2,560 advantages": lambda: RECIPE.credit(groups, config),
        **ledger_stages(ledger, problems, groups),
    }


def ledger_stages(
    ledger: DifficultyLedger, problems: Sequence[Problem], groups: Sequence[ScoredGroup]
) -> dict[str, Callable[[], object]]:
    def look_up() -> float:
        return sum(ledger.level(problem) for problem in problems)

    def update_and_look_up() -> None:
        ledger.observe(groups, 1)
        look_up()

    return {
        "ledger: update and look up 256 of 18,000 questions": update_and_look_up,
        "of which: looking up": look_up,
    }


def measure_taking(requests: Sequence[Request], encoder: PromptEncoder, repeats: int) -> Measurement:
    """The step's part of prompts that were made ahead: the making, in the background, is off the clock."""
    wanted = [(request.variant, number) for number, request in enumerate(requests)]
    prefetcher = PromptPrefetcher(encoder, max_bytes=2**40)
    seconds = []
    for step in range(repeats):
        prefetcher.prefetch(wanted, step)
        prefetcher.wait()
        start = time.process_time()
        for variant, key in wanted:
            prefetcher.encode(variant, key)
        seconds.append(time.process_time() - start)
        if prefetcher.take_share() < 1:
            raise RuntimeError("not every prompt was made ahead")
    prefetcher.close()
    return Measurement(TAKE, 1, statistics.median(seconds), min(seconds), max(seconds))


def print_stages(title: str, measured: Sequence[Measurement]) -> None:
    table = Table(title=f"{title}; CPU time, {torch.get_num_threads()} threads")
    for heading in ("stage", "ms", "least", "most"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for one in measured:
        table.add_row(one.stage, *(f"{1e3 * seconds:.4g}" for seconds in (one.median_s, one.least_s, one.most_s)))
    Console(width=100).print(table)
    seconds = {one.stage: one.median_s for one in measured if not one.stage.startswith("of which")}
    ahead = seconds.pop(TAKE)
    for name, total in (
        ("in all", sum(seconds.values())),
        ("on the step's own path, prompts made ahead", sum(seconds.values()) - seconds[ENCODE] + ahead),
    ):
        shares = (f"{total / (STEP_S * CORES_PER_GPU * count):.3%} with {count} GPUs" for count in GPUS)
        print(f"{name}: {total:.3f} CPU s, of {STEP_S} s on {CORES_PER_GPU} cores a GPU {', '.join(shares)}")


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
