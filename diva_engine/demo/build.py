"""Builds the demo folder: parquet files and a warmed-up model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

from diva_engine.demo import gym, tiles
from diva_engine.demo.lessons import Mixture
from diva_engine.demo.model import make_model, make_tokenizer, save_model_folder
from diva_engine.demo.questions import Question, write_parquet
from diva_engine.demo.warmup import WarmUp, warm_up
from diva_engine.records import UserError

SEED = 0
MARKER = "COMPLETE"
HARD_LEVEL = 4  # from here on the warmed-up model mostly fails

# More of the hard levels, which training is about; enough of the easy ones to see whether they are kept.
TILES_PER_LEVEL = {
    "train": {1: 16, 2: 16, 3: 16, 4: 32, 5: 32, 6: 32},
    "test": {1: 32, 2: 32, 3: 32, 4: 64, 5: 64, 6: 64},
}
POLYGONS_PER_LEVEL = {"train": 32, "test": 32, "warmup": 64}
SUMS_PER_LEVEL = {"train": 24, "test": 24, "warmup": 140}  # only 200 sums have two terms


def build(folder: Path, console: Console, warm_up_steps: int) -> None:
    """Fill `folder` with the demo; returns at once where it is complete. UserError where it holds other things."""
    folder = folder.resolve()
    if (folder / MARKER).exists():
        console.print(f"{folder} is complete.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no demo folder; name another one, or remove it")
    # Built beside its place and renamed, so that what an interrupted build leaves is never taken for a demo.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    stored_questions = _write_questions(unfinished, console)
    _write_model(unfinished / "model", WarmUp(_mixture(stored_questions), warm_up_steps, seed=SEED), console)
    (unfinished / MARKER).write_text("")
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    console.print(f"{folder} is complete: model/ and {len(list(folder.glob('*.parquet')))} parquet files.")


def _write_questions(folder: Path, console: Console) -> list[Question]:
    """Write all parquet files; returns the questions that only the warm-up sees."""
    of_tiles = {split: tiles.draw_questions(split, counts) for split, counts in TILES_PER_LEVEL.items()}
    hard = {split: [question for question in of_tiles[split] if question.level >= HARD_LEVEL] for split in of_tiles}
    polygons = gym.draw_questions(gym.Polygons(), POLYGONS_PER_LEVEL)
    sums = gym.draw_questions(gym.Sums(), SUMS_PER_LEVEL)
    warm_up_only = sums.pop("warmup") + polygons.pop("warmup")
    for name, splits in {"tiles": of_tiles, "tiles_hard": hard, "polygons": polygons, "sums": sums}.items():
        for split, questions in splits.items():
            write_parquet(folder / f"{name}_{split}.parquet", questions)
            console.print(f"{name}_{split}.parquet: {len(questions)} questions")
    return warm_up_only


def _mixture(stored_questions: Sequence[Question]) -> Mixture:
    return Mixture(
        listing=0.3,
        stored=0.12,
        hinted=0.3,
        begun=0.1,
        varied=0.25,
        levels={1: 1, 2: 1, 3: 1},
        hinted_levels={2: 1, 3: 1, 4: 0.5, 5: 0.5, 6: 0.5},
        begun_levels={5: 1, 6: 1},
        stored_questions=stored_questions,
    )


def _write_model(folder: Path, plan: WarmUp, console: Console) -> None:
    threads = torch.get_num_threads()
    # Sums are split by the number of threads, and so differ with it; and this model is too small to gain from two.
    torch.set_num_threads(1)
    try:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, plan.seed)
        with _progress(console) as progress:
            task = progress.add_task("warming up the model", total=plan.steps, loss=float("nan"))
            warm_up(model, tokenizer, plan, _reporter(progress, task))
        logging.disable_progress_bar()
        save_model_folder(folder, model, tokenizer)
    finally:
        torch.set_num_threads(threads)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def _reporter(progress: Progress, task: int) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        progress.update(task, completed=step, loss=loss)

    return report
