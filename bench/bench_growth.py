"""How a step's cost grows: with the answers to a prompt, with the length of the prompt, with the ranks.

    python -m bench.bench_growth

The checkpoint of bench_step, pictures of 64 tokens, 8 prompts x 8 answers x 32 tokens unless the case says otherwise,
in this engine with native rollouts, one thread a rank. CPU seconds of the first rank: median, least and most of the
steps after the first; peak memory of that process. A JSON line a case goes to bench/results/growth.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.bench_step import StepResult, run_engine, write_results
from bench.step_task import StepTask, build_checkpoint

RESULTS = Path(__file__).parent / "results" / "growth.jsonl"
ANSWERS, PROMPT_TOKENS, RANKS = (2, 4, 8, 16), (128, 512, 2048), (1, 2)
CHAT_TOKENS = 85  # of the picture and of the chat around the question, of which a character is a token


def cases(base: StepTask) -> Iterator[tuple[str, StepTask, int]]:
    """Name, task and ranks."""
    for answers in ANSWERS:
        yield f"{answers} answers", replace(base, answers=answers), 1
    for tokens in PROMPT_TOKENS:
        yield f"prompts of {tokens} tokens", replace(base, question="?" * (tokens - CHAT_TOKENS)), 1
    for ranks in RANKS:
        yield f"{ranks} ranks", base, ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured ones; one more warms up")
    options = parser.parse_args()
    table = Table(title="CPU seconds of a step of 8 prompts: median (least to most)")
    for heading in ("case", "step", "rollout", "update", "peak GB"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(folder)
        base = StepTask(folder, image_tokens=64, prompts=8, tokens=32, steps=options.steps + 1, micro_batch_tokens=4096)
        for name, task, ranks in cases(base):
            result = run_engine("native", task, ranks=ranks)
            write_results([result], RESULTS, case=name, ranks=ranks)
            table.add_row(name, *_cells(result))
    Console(width=120).print(table)


def _cells(result: StepResult) -> list[str]:
    cells = []
    for phase in ("step", "rollout", "update"):
        seconds = result.cpu_s[phase]
        cells.append(f"{result.median(phase):.3g} ({min(seconds):.3g} to {max(seconds):.3g})")
    return [*cells, f"{result.peak_bytes / 1e9:.2f}"]


if __name__ == "__main__":
    main()
