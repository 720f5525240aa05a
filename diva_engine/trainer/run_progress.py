"""How far a run is, and what it has come to in the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diva_engine.config import Config
from diva_engine.trainer.checkpoint import best_checkpoint


@dataclass
class Progress:
    """How far the run is; part of every checkpoint."""

    step: int = 0
    rollouts: int = 0
    tokens: int = 0
    train_wall_s: float = 0.0
    train_cpu_s: float = 0.0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    validated_step: int = -1  # the step after which held-out accuracy was last measured


def summary_of(config: Config, progress: Progress, run_dir: Path) -> dict[str, Any]:
    """What `summary.json` holds."""
    return {
        "algorithm": config.algorithm.adv_estimator,
        "seed": config.data.seed,
        "accuracy_before": progress.accuracy_before,
        "accuracy_after": progress.accuracy_after,
        "steps": progress.step,
        "responses": progress.rollouts,
        "tokens": progress.tokens,
        "wall_s": progress.train_wall_s,
        "cpu_s": progress.train_cpu_s,
        "tokens_per_s": progress.tokens / max(progress.train_wall_s, 1e-9),
        "run_dir": str(run_dir),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **_best(config, run_dir),
    }


def _best(config: Config, run_dir: Path) -> dict[str, str]:
    """Where `trainer.save_best` names a metric: the checkpoint kept for it."""
    trainer = config.trainer
    best = best_checkpoint(run_dir, trainer.save_best, trainer.save_best_mode) if trainer.save_best else None
    return {"best_checkpoint": str(best.path)} if best else {}


def closing_line(summary: Mapping[str, Any]) -> str:
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    spent = f"{summary['steps']} steps, {summary['responses']} responses, {summary['wall_s']:.0f} s"
    if before is None or after is None:
        return f"{spent}; the run lies in {summary['run_dir']}"
    return f"held-out accuracy {before:.1%} -> {after:.1%} after {spent}; the run lies in {summary['run_dir']}"
