"""The run's questions, opened as the settings say, and what makes prompts of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diva_engine.config import Config, DataConfig
from diva_engine.data.dataset import ProblemSet, open_problems, write_report
from diva_engine.data.prompts import PromptEncoder
from diva_engine.distributed import current_world, say
from diva_engine.records import Problem, Processor, UserError
from diva_engine.trainer.validate import refuse_unknown_column


def open_data(config: Config) -> tuple[ProblemSet, Sequence[Problem]]:
    """The training and the held-out questions, each described on the way."""
    data = config.data
    if not data.train_files:
        raise UserError("data.train_files is empty; give a parquet, jsonl or json file, a folder or a hub name")
    opened = [open_file(files, data) for files in (data.train_files, data.val_files) if files]
    for problems in opened:
        say("\n".join(problems.describe()))
    if not data.val_files:
        return opened[0], []
    refuse_unknown_column(opened[1], config.trainer.val_by, f"trainer.val_by={config.trainer.val_by}")
    return opened[0], opened[1]


def open_file(files: str | list[str], data: DataConfig) -> ProblemSet:
    """The questions behind one `data.train_files` or `data.val_files`, by the columns that the user named."""
    keys = {"text": data.prompt_key, "answer": data.answer_key, "images": data.image_key, "id": data.id_key}
    columns = {field: None if column == "none" else column for field, column in keys.items() if column}
    return open_problems(files, columns=columns, image_dir=data.image_dir or None, on_bad_row=data.on_bad_row)


def drop_bad_rows(opened: Sequence[Sequence[Problem]], encoder: PromptEncoder, run_dir: Path) -> None:
    """Leaves out the rows that no prompt can be made of, and writes all rows left out to `bad_rows.jsonl`."""
    problem_sets = [problems for problems in opened if isinstance(problems, ProblemSet)]
    for problems in problem_sets:
        if problems.drop_unusable(encoder.check):
            say("\n".join(problems.describe_rows()))
    if current_world().is_first:
        write_report(run_dir / "bad_rows.jsonl", [bad for problems in problem_sets for bad in problems.bad_rows])


def build_encoder(config: Config, processor: Processor) -> PromptEncoder:
    data = config.data
    return PromptEncoder(
        processor,
        format_prompt=data.format_prompt or None,
        system_prompt=data.system_prompt or None,
        min_pixels=data.min_pixels or None,
        max_pixels=data.max_pixels or None,
        max_prompt_length=data.max_prompt_length,
        image_dir=data.image_dir or None,
        font_path=data.font,
    )
