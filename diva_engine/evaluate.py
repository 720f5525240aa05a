"""Measures a model folder on a file of questions.

    python -m diva_engine.evaluate --model runs/grpo_seed1/checkpoints/global_step_60/policy \
        --data demo_data/tiles_test.parquet --by level --without-image --output report.json

Greedy accuracy unless --n asks for several answers; broken down by difficulty and by any column. --without-image asks
every question once more without its image: the text-bias gap is what the image is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from diva_engine.config import Config
from diva_engine.data.dataset import ProblemSet
from diva_engine.policy.model import Policy
from diva_engine.records import UserError
from diva_engine.rollout.calibrated_engine import CalibratedEngine
from diva_engine.rollout.calibration import check_gamma
from diva_engine.settings import flatten, load_config
from diva_engine.train import build_collector, open_policy
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.evaluation import (
    Evaluation,
    TextOnlyEncoder,
    check_writable,
    powers_of_two,
    write_answers,
    write_report,
)
from diva_engine.trainer.faults import FaultLog
from diva_engine.trainer.progress import progress_over
from diva_engine.trainer.questions import build_encoder, open_file
from diva_engine.trainer.validate import Validation, refuse_unknown_column, validate

ASKED_AS_TRAINED = (
    "data.format_prompt",
    "data.system_prompt",
    "data.min_pixels",
    "data.max_pixels",
    "data.max_prompt_length",
    "data.max_response_length",
)
MAX_ROWS = 40  # values of one column shown on the terminal; --output has them all
MAX_VALUE_WIDTH = 40
FILE_WIDTH = 200  # where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        result = evaluate(options)
        columns = columns_of(result, options)
        print_result(result, columns, options)
        if options.output:
            write_report(options.output, report_of(result, columns, options))
        if options.answers:
            write_answers(options.answers, result.answers(columns))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub name")
    parser.add_argument("--data", required=True, help="parquet, jsonl or json file, folder, hub name, or path@split")
    parser.add_argument("--n", type=int, default=1, help="answers a question (default: 1)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: 0 for one answer, 1 for several)")
    parser.add_argument("--pass-k", action="store_true", help="pass@k for k = 1, 2, 4, ... up to --n (unbiased)")
    parser.add_argument("--without-image", action="store_true", help="also without images, and the text-bias gap")
    parser.add_argument(
        "--calibrate", type=float, default=0.0, metavar="GAMMA", help="text-bias calibration (0 is off)"
    )
    parser.add_argument(
        "--by", nargs="+", action="extend", default=[], metavar="COLUMN", help="break down by these columns too"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the sampling (default: 1)")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--answers", type=Path, help="write every question with its answers to this jsonl file")
    parser.add_argument("settings", nargs="*", help="further settings as section.name=value, as in training")
    options = parser.parse_intermixed_args(arguments)
    # `--by level data.image_dir=pictures`: the second word is a setting.
    options.settings += [word for word in options.by if "=" in word]
    options.by = [word for word in options.by if "=" not in word]
    if options.temperature is None:
        options.temperature = 0.0 if options.n == 1 else 1.0
    return options


def settings_of_checkpoint(model: Path) -> list[str]:
    """How a checkpoint's `policy` folder was asked in training, as settings; nothing for another model folder."""
    file = model.parent / "config.yaml"
    if model.name != "policy" or not file.is_file():
        return []
    trained, defaults = flatten(load_config([f"config={file}"])), flatten(Config())
    return [f"{name}={trained[name]}" for name in ASKED_AS_TRAINED if trained[name] != defaults[name]]


def evaluate(options: argparse.Namespace) -> Evaluation:
    """Asks every question of the file `--n` times, and as often again without its image if that is wanted."""
    check_options(options)
    asked_as_trained = settings_of_checkpoint(Path(options.model))
    if asked_as_trained:
        print("as the checkpoint was trained:", *asked_as_trained)
    config = load_config([f"model={options.model}", f"seed={options.seed}", *asked_as_trained, *options.settings])
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    problems = open_file(options.data, config.data)
    check_data(problems, options)
    policy = open_policy(config)
    collector = open_collector(config, policy, options)
    problems.drop_unusable(collector.encoder.check)
    print("\n".join(problems.describe()))
    batch_size = max(1, config.worker.rollout.max_batch_rows // options.n)
    try:
        with_image = ask(problems, collector, "answering", batch_size, options.n)
        if not options.without_image:
            return Evaluation(with_image)
        blind = dataclasses.replace(collector, encoder=TextOnlyEncoder(collector.encoder, policy.processor))
        return Evaluation(with_image, ask(problems, blind, "without images", batch_size, options.n))
    finally:
        collector.reward.close()
        collector.close()


def check_options(options: argparse.Namespace) -> None:
    if options.n < 1:
        raise UserError(f"--n {options.n}: ask for 1 answer a question at least")
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise UserError(f"--temperature {options.temperature}: give a number of at least 0 (0 is greedy)")
    if options.n > 1 and options.temperature == 0:
        raise UserError(
            f"--n {options.n} --temperature 0 gives the same answer {options.n} times; take --temperature 1"
        )
    check_gamma(options.calibrate)
    for option in ("output", "answers"):
        if path := getattr(options, option):
            check_writable(path, f"--{option}")


def check_data(problems: ProblemSet, options: argparse.Namespace) -> None:
    """Refuses what the data cannot be asked for, before the model is opened."""
    for column in options.by:
        refuse_unknown_column(problems, column, f"--by {column}")
    needs_images = [f"--calibrate {options.calibrate:g}"] * bool(options.calibrate)
    needs_images += ["--without-image"] * options.without_image
    if needs_images and not any(problem.images for problem in problems):
        raise UserError(f"{needs_images[0]}: no question of {options.data} has an image")


def open_collector(config: Config, policy: Policy, options: argparse.Namespace) -> Collector:
    rollout = config.worker.rollout
    if options.calibrate and rollout.engine != "native":
        raise UserError(f"--calibrate decodes with the native engine alone, not worker.rollout.engine={rollout.engine}")
    tell = functools.partial(print, "note:", file=sys.stderr)
    collector = build_collector(config, policy, build_encoder(config, policy.processor), FaultLog(tell=tell))
    collector = collector.with_sampling(dataclasses.replace(collector.sampling, temperature=options.temperature))
    if options.calibrate == 0:
        return collector
    engine = CalibratedEngine(
        policy.model, policy.processor, gamma=options.calibrate, max_batch_rows=rollout.max_batch_rows
    )
    return dataclasses.replace(collector, engine=engine)


def ask(problems: ProblemSet, collector: Collector, label: str, batch_size: int, num_answers: int) -> Validation:
    already = len(collector.skipped)
    with progress_over(len(problems), label) as on_batch:
        result = validate(problems, collector, batch_size=batch_size, num_rollouts=num_answers, on_batch=on_batch)
    skipped = collector.skipped[already:]
    if not result.groups:
        raise UserError(f"no question could be posed; the first: {skipped[0]}")
    if skipped:
        noun = "question" if len(skipped) == 1 else "questions"
        print(f"{label}: {len(skipped)} {noun} could not be posed; the first: {skipped[0]}", file=sys.stderr)
    return result


def columns_of(result: Evaluation, options: argparse.Namespace) -> list[str]:
    """Difficulty where the data has it, then the user's columns."""
    return list(dict.fromkeys(["difficulty"] * result.has_levels + options.by))


def print_result(result: Evaluation, columns: Sequence[str], options: argparse.Namespace) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    ks = powers_of_two(options.n)[1:] if options.pass_k else []
    table = Table(box=box.SIMPLE)
    blind = ["no image", "gap"] if result.without_image is not None else []
    for name in ["", "questions", "accuracy", *(f"pass@{k}" for k in ks), *blind, "format", "truncated", "length"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("all", *cells_of(result, ks))
    for column in columns:
        table.add_section()
        parts = result.by(column)
        for value, part in list(parts.items())[:MAX_ROWS]:
            table.add_row(f"{column} {shortened(value)}", *cells_of(part, ks))
        if len(parts) > MAX_ROWS:
            table.add_row(f"and {len(parts) - MAX_ROWS} more values of {column}")
    console.print(title_of(result, options), highlight=False)
    console.print(table)


def title_of(result: Evaluation, options: argparse.Namespace) -> str:
    how = "greedy" if options.temperature == 0 else f"{options.n} answers each at temperature {options.temperature:g}"
    calibrated = f", calibrated with gamma {options.calibrate:g}" if options.calibrate else ""
    return f"accuracy {result.with_image.accuracy:.1%} over {result.num_questions} questions ({how}{calibrated})"


def cells_of(part: Evaluation, ks: Sequence[int]) -> list[str]:
    seen, blind = part.with_image, part.without_image
    cells = [str(part.num_questions), f"{seen.accuracy:.1%}", *(f"{seen.pass_at(k):.1%}" for k in ks)]
    if blind is not None:
        cells += [f"{blind.accuracy:.1%}", f"{100 * (seen.accuracy - blind.accuracy):+.1f}"]
    return [*cells, f"{seen.format:.1%}", f"{seen.truncated:.1%}", f"{seen.mean_length:.1f}"]


def shortened(value: str) -> str:
    return value if len(value) <= MAX_VALUE_WIDTH else value[: MAX_VALUE_WIDTH - 3] + "..."


def report_of(result: Evaluation, columns: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    ks = powers_of_two(options.n) if options.pass_k else []
    settings = {name: getattr(options, name) for name in ("model", "data", "n", "temperature", "calibrate", "seed")}
    by = {column: {value: part.numbers(ks) for value, part in result.by(column).items()} for column in columns}
    return {**settings, "settings": options.settings, **result.numbers(ks), "by": by}


if __name__ == "__main__":
    sys.exit(main())
