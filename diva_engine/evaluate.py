"""Measures a model folder on a file of questions.

    python -m diva_engine.evaluate --model runs/grpo_seed1/checkpoints/global_step_100/policy \
        --data demo_data/tiles_test.parquet --by level
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diva_engine.config import Config
from diva_engine.records import Sampling, UserError
from diva_engine.settings import load_config
from diva_engine.train import build_collector, build_encoder, open_file, open_policy
from diva_engine.trainer.validate import Validation, validate


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        result = evaluate(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_result(result, options.by)
    if options.output:
        options.output.write_text(json.dumps(as_json(result, options), indent=2) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub name")
    parser.add_argument("--data", required=True, help="parquet, jsonl or json file, folder, hub name, or path@split")
    parser.add_argument("--by", default="difficulty", help="column that breaks accuracy down (default: difficulty)")
    parser.add_argument("--n", type=int, default=1, help="answers a question (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sampling (default: 1)")
    parser.add_argument("--output", type=Path, help="write the numbers and every answer to this JSON file")
    parser.add_argument("settings", nargs="*", help="further settings as section.name=value, as in training")
    return parser.parse_args(arguments)


def evaluate(options: argparse.Namespace) -> Validation:
    """Asks every question of the file `--n` times."""
    config = settings_of(options)
    problems = open_file(options.data, config.data)
    policy = open_policy(config)
    encoder = build_encoder(config, policy)
    problems.drop_unusable(encoder.check)
    print("\n".join(problems.describe()))
    collector = build_collector(config, policy, encoder)
    collector = collector.with_sampling(Sampling(options.temperature, 1.0, config.data.max_response_length))
    batch_size = max(1, config.worker.rollout.max_batch_rows // options.n)
    return validate(problems, collector, batch_size=batch_size, num_rollouts=options.n)


def settings_of(options: argparse.Namespace) -> Config:
    return load_config([f"model={options.model}", f"seed={options.seed}", *options.settings])


def print_result(result: Validation, by: str) -> None:
    table = Table(title=f"accuracy {result.accuracy:.1%} over {len(result.groups)} questions")
    for heading in (by, "questions", "accuracy"):
        table.add_column(heading, justify="right")
    counts = result.count_by(by)
    for value, accuracy in result.accuracy_by(by).items():
        table.add_row(value, str(counts[value]), f"{accuracy:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"format {result.format:.1%}, truncated {result.truncated:.1%}, mean length {result.mean_length:.1f} tokens"
    )


def as_json(result: Validation, options: argparse.Namespace) -> dict[str, Any]:
    answers = [
        {
            "id": group.variant.problem.id,
            "answer": group.variant.problem.answer,
            "responses": [rollout.text for rollout in group.rollouts],
            "accuracies": [score.accuracy for score in group.scores],
        }
        for group in result.groups
    ]
    return {"model": options.model, "data": options.data, **result.metrics(options.by), "answers": answers}


if __name__ == "__main__":
    sys.exit(main())
