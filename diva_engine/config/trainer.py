"""Settings of the run: where it lies, how long it lasts, what it logs and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diva_engine.config.setting import setting


@dataclass(frozen=True)
class TrainerConfig:
    project_name: str = setting("diva_engine", "project in the loggers that have projects")
    experiment_name: str = setting("", "name of the run; empty: <algorithm>_seed<seed>")
    save_checkpoint_path: str = setting("", "folder of the run; empty: runs/<experiment_name>")
    load_checkpoint_path: str = setting(
        "",
        "checkpoint to go on from; `latest`: newest whole one of the run's folder; `auto`: the same, or a new run "
        "where there is none yet",
    )
    logger: list[str] = setting(
        ["console", "file", "tensorboard"], "where metrics go: console, file, tensorboard, wandb"
    )
    total_epochs: int = setting(1, "passes over the training questions", low=1)
    max_steps: int = setting(0, "stop after this many steps; 0: after total_epochs", low=0)
    val_before_train: bool = setting(True, "measure held-out accuracy before the first step")
    val_freq: int = setting(0, "measure held-out accuracy every so many steps; 0: at the end only", low=0)
    val_by: str = setting("difficulty", "column by which held-out accuracy is broken down")
    save_freq: int = setting(0, "write a checkpoint every so many steps; 0: at the end only", low=0)
    save_limit: int = setting(2, "newest checkpoints kept; 0 keeps all", low=0)
    save_best: str = setting("", "metric whose best checkpoint is kept beside the newest, such as val/accuracy")
    save_best_mode: Literal["max", "min"] = setting(
        "max", "whether the best of save_best is its highest or lowest value"
    )
    async_save: bool = setting(True, "write checkpoints while the run goes on; false: wait until they are on the disk")
    max_skipped_steps: int = setting(
        3, "optimizer steps in a row that may be skipped for a loss or gradient that is not finite", low=0
    )
    rank_timeout_s: float = setting(
        120.0, "several ranks: one that gives no sign for so long is lost, and the others stop; 0: they wait", low=0
    )
    phase_limit_s: float = setting(
        1800.0, "a phase of a step that takes longer has the stacks of all threads written down; 0: never", low=0
    )
    on_phase_limit: Literal["report", "stop"] = setting(
        "report", "what follows after phase_limit_s: `report` only, or `stop` with exit code 75"
    )
    rollouts_to_log: int = setting(4, "rollouts written to rollouts.jsonl a step", low=0)
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    num_threads: int = setting(0, "CPU threads of torch; 0 leaves torch's default", low=0)
