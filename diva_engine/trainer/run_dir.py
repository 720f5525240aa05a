"""Where a run lies on disk. A finished run is never written over."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from diva_engine.config import Config
from diva_engine.records import UserError


def find_run_dir(config: Config) -> Path:
    """The run's folder; `make_run_dir` makes it.

    A resumed run goes on in its own folder. A run named by the user must be new; a run without a name gets a free one.
    """
    trainer = config.trainer
    name = trainer.experiment_name or f"{config.algorithm.adv_estimator}_seed{config.data.seed}"
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(
            f"trainer.experiment_name={name} leads out of runs/; a folder is given as trainer.save_checkpoint_path"
        )
    folder = Path(trainer.save_checkpoint_path or f"runs/{name}")
    if trainer.load_checkpoint_path:
        return _resumed(config, folder)
    if holds_run(folder) and not (trainer.experiment_name or trainer.save_checkpoint_path):
        folder = _free(folder)
    if holds_run(folder):
        raise UserError(
            f"{folder} already holds a run: go on with trainer.load_checkpoint_path=latest, "
            f"or give another trainer.experiment_name"
        )
    return folder


def make_run_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run's folder {folder} cannot be made ({error.strerror}); give another trainer.save_checkpoint_path"
        ) from None


def holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def command_to_go_on(run_dir: Path) -> str:
    """What to type, where this run was started, to go on from its newest checkpoint."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", f"--nproc-per-node={ranks}"] if ranks else ["python"]
    settings = [f"config={run_dir / 'config.yaml'}", f"trainer.save_checkpoint_path={run_dir}"]
    return shlex.join([*launcher, "-m", "diva_engine.train", *settings, "trainer.load_checkpoint_path=latest"])


def _resumed(config: Config, folder: Path) -> Path:
    checkpoint = config.trainer.load_checkpoint_path
    named = config.trainer.save_checkpoint_path or config.trainer.experiment_name
    if checkpoint in ("latest", "auto"):
        return folder
    own = Path(checkpoint).resolve().parent.parent  # <run>/checkpoints/global_step_N
    if not named:
        return own
    if holds_run(folder) and folder.resolve() != own:
        raise UserError(f"{folder} already holds another run than {checkpoint}; give another trainer.experiment_name")
    return folder


def _free(folder: Path) -> Path:
    number = 2
    while holds_run(folder.with_name(f"{folder.name}_{number}")):
        number += 1
    return folder.with_name(f"{folder.name}_{number}")
