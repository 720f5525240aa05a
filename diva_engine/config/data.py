"""Settings of the data: which files, which columns, how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diva_engine.config.setting import setting


@dataclass(frozen=True)
class DataConfig:
    train_files: str | list[str] = setting(
        "", "training questions: a parquet, jsonl or json file, a folder, a hub name, or path@split; or a list of them"
    )
    val_files: str | list[str] = setting("", "held-out questions, read the same way; empty for none")
    prompt_key: str = setting("", "column of the question; empty: found by its usual names")
    answer_key: str = setting("", "column of the answer; empty: found by its usual names")
    image_key: str = setting("", "column of the images; empty: found by its usual names")
    id_key: str = setting("", "column of the ids; empty: found by its usual names; none: ids are file and row")
    image_dir: str = setting("", "folder that relative image paths start from")
    format_prompt: str = setting("", "Jinja file that receives the question as `content` and renders the user message")
    system_prompt: str = setting("", "system message put before every question")
    max_prompt_length: int = setting(2048, "longest prompt in tokens; longer rows count as bad", low=1)
    max_response_length: int = setting(2048, "longest answer in tokens", low=1)
    rollout_batch_size: int = setting(512, "questions posed a step", low=1)
    shuffle: bool = setting(True, "draw the questions of an epoch in random order")
    seed: int = setting(1, "seed of everything random: order of questions, variants, sampling", low=0)
    min_pixels: int = setting(0, "images below this area are enlarged to it; 0 leaves it to the image processor", low=0)
    max_pixels: int = setting(0, "images above this area are shrunk to it; 0 leaves it to the image processor", low=0)
    on_bad_row: Literal["skip", "stop"] = setting("skip", "what to do with a row that cannot be used")
    font: str = setting("", "TrueType or OpenType file for questions drawn into images; empty: DejaVu Sans")
    prefetch: int = setting(
        4096, "MiB of the next step's prompts encoded while this step generates and learns, a rank; 0 is off", low=0
    )
