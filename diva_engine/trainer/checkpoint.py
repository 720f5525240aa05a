"""Checkpoints: all that a run needs to go on exactly, in one folder that appears whole or not at all.

checkpoints/global_step_N/policy/       an ordinary Hugging Face folder
checkpoints/global_step_N/trainer.pt    optimizer, ledger, question order, step
checkpoints/global_step_N/config.yaml   the resolved settings
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diva_engine.config import Config
from diva_engine.policy.model import Policy
from diva_engine.records import UserError
from diva_engine.settings import flatten, load_config, save_config

FOLDER = re.compile(r"global_step_(\d+)")


def save_checkpoint(run_dir: Path, step: int, policy: Policy, state: Mapping[str, Any], config: Config) -> Path:
    """Writes checkpoint `step` below `run_dir`, then drops the oldest beyond `trainer.save_limit`."""
    final = run_dir / "checkpoints" / f"global_step_{step}"
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    policy.save(partial / "policy")
    torch.save(dict(state), partial / "trainer.pt")
    save_config(config, partial / "config.yaml")
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _drop_oldest(run_dir, config.trainer.save_limit)
    return final


def load_trainer_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's part of a checkpoint. Nothing in it is unpickled beyond tensors and plain values."""
    try:
        return torch.load(checkpoint / "trainer.pt", weights_only=True)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UserError(f"{checkpoint} is no checkpoint: it has no trainer.pt; give a global_step_N folder") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"{checkpoint / 'trainer.pt'} is damaged ({type(error).__name__}); resume from an older one"
        ) from None


def find_checkpoint(path: str, run_dir: Path) -> Path:
    """The folder that `trainer.load_checkpoint_path` names; `latest` is the newest below `run_dir`."""
    if path != "latest":
        if not (Path(path) / "trainer.pt").is_file():
            raise UserError(f"{path} is no checkpoint: it has no trainer.pt; give a global_step_N folder, or latest")
        return Path(path)
    found = list_checkpoints(run_dir)
    if not found:
        raise UserError(f"trainer.load_checkpoint_path=latest, but {run_dir / 'checkpoints'} holds no checkpoint")
    return found[-1]


def refuse_later_checkpoints(checkpoint: Path, run_dir: Path) -> None:
    """Raises UserError where the run, going on from `checkpoint`, would meet later ones of its own past."""
    own = list_checkpoints(run_dir)
    if own and checkpoint.resolve() in [path.resolve() for path in own[:-1]]:
        raise UserError(
            f"{own[-1]} is later than {checkpoint.name}: go on from it (trainer.load_checkpoint_path=latest), move it "
            "away, or give another trainer.experiment_name"
        )


def changed_settings(checkpoint: Path, config: Config) -> list[str]:
    """One line for each setting, the trainer's own left out, that differs from the checkpoint's."""
    path = checkpoint / "config.yaml"
    if not path.is_file():
        return []
    before, now = flatten(load_config([f"config={path}"])), flatten(config)
    return [
        f"changed since {checkpoint.name}: {name} was {before[name]}, is {value}"
        for name, value in now.items()
        if value != before[name] and not name.startswith("trainer.")
    ]


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The run's whole checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("global_step_*")
    steps = {path: match for path in folders if (match := FOLDER.fullmatch(path.name))}
    return sorted(steps, key=lambda path: int(steps[path][1]))


def _drop_oldest(run_dir: Path, limit: int) -> None:
    if limit:
        for path in list_checkpoints(run_dir)[:-limit]:
            shutil.rmtree(path)
