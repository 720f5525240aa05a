"""Checkpoints: all that a run needs to go on exactly, in one folder that appears whole or not at all.

checkpoints/global_step_N/policy/        an ordinary Hugging Face folder, weights in the model's type
checkpoints/global_step_N/adapter/       adapters, where they are trained, as peft reads them; policy/ has the sums
checkpoints/global_step_N/state/         float32 masters and optimizer moments, sharded by rank
checkpoints/global_step_N/trainer.pt     progress, question order, ledger, random states
checkpoints/global_step_N/config.yaml    the resolved settings
checkpoints/global_step_N/manifest.json  size and SHA-256 of every file, versions

`checkpoint_saver.py` writes them; here they are found, checked and read.
"""

from __future__ import annotations

import difflib
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diva_engine.config import Config
from diva_engine.distributed import current_world
from diva_engine.records import UserError
from diva_engine.settings import flatten, load_config
from diva_engine.trainer.checkpoint_files import DAMAGED, PARTIAL, DamageError, check, publish, read_manifest
from diva_engine.trainer.metric_names import METRICS, describe

FOLDER = re.compile(r"global_step_(\d+)")


def load_trainer_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's part of a checkpoint. Nothing in it is unpickled beyond tensors and plain values."""
    try:
        return torch.load(checkpoint / "trainer.pt", weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"{checkpoint / 'trainer.pt'} is damaged ({type(error).__name__}); resume from an older one"
        ) from None


def find_checkpoint(path: str, run_dir: Path, tell: Callable[[str], None] = print) -> Path:
    """The whole checkpoint that `trainer.load_checkpoint_path` names.

    `latest`, and `auto` too, is the newest whole one below `run_dir`: those after it that are damaged or half-written
    are named by `tell`, and put aside. Raises UserError where the one named, or all of them, cannot be used.
    """
    if path in ("latest", "auto"):
        return _newest_whole(run_dir, tell)
    folder = Path(path)
    if not (folder / "trainer.pt").is_file():
        raise UserError(f"{path} is no checkpoint: it has no trainer.pt; give a global_step_N folder, or latest")
    try:
        check(folder)
    except DamageError as damage:
        raise UserError(
            f"{path} is damaged: {damage}; trainer.load_checkpoint_path=latest takes the newest one that is whole"
        ) from None
    return folder


def _newest_whole(run_dir: Path, tell: Callable[[str], None]) -> Path:
    folder, damaged = run_dir / "checkpoints", dict[Path, str]()
    halves = [path for path in sorted(folder.glob(f"global_step_*{PARTIAL}")) if not _finish(path, tell)]
    found = list_checkpoints(run_dir)
    for path in reversed(found):
        try:
            check(path)
        except DamageError as damage:
            damaged[path] = str(damage)
            continue
        for half in halves:
            tell(f"{half} was never finished; it is passed over")
        for other, reason in damaged.items():
            aside = _put_aside(other)
            tell(f"{other} is damaged: {reason}; it is passed over and now called {aside.name}")
        return path
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise UserError(f"no checkpoint in {folder} is whole ({reasons}); restore one from a copy, or start a new run")
    only = f" (only {', '.join(path.name for path in halves)}, never finished)" if halves else ""
    raise UserError(
        f"{folder} holds no checkpoint{only} to go on from; leave trainer.load_checkpoint_path out and give another "
        "trainer.experiment_name to start anew"
    )


def _had_checkpoints(run_dir: Path) -> bool:
    """Whether the run got as far as a checkpoint, be it damaged or lost since. Of a first that was never finished:
    whether it is whole but for its name."""
    found = [path for path in (run_dir / "checkpoints").glob("global_step_*") if path.suffix != PARTIAL]
    halves = (run_dir / "checkpoints").glob(f"global_step_*{PARTIAL}")
    return bool(found) or (run_dir / "summary.json").exists() or any(_is_whole(half) for half in halves)


def _finish(half: Path, tell: Callable[[str], None]) -> bool:
    """Gives a checkpoint its name that was killed when it was whole but for it; whether that was so."""
    final = half.with_suffix("")
    if final.exists() or not _is_whole(half):
        return False
    publish(half, final)
    tell(f"{half} was whole but for its name; it is {final.name} now")
    return True


def _is_whole(folder: Path) -> bool:
    try:
        check(folder)
    except DamageError:
        return False
    return True


def _put_aside(path: Path) -> Path:
    """Under a name that is no checkpoint's, for its number will be written again and must count among the kept."""
    aside = path.with_name(path.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def refuse_later_checkpoints(checkpoint: Path, run_dir: Path) -> None:
    """Raises UserError where the run, going on from `checkpoint`, would meet later ones of its own past."""
    own = list_checkpoints(run_dir)
    if own and checkpoint.resolve() in [path.resolve() for path in own[:-1]]:
        raise UserError(
            f"{own[-1]} is later than {checkpoint.name}: go on from it (trainer.load_checkpoint_path=latest), move it "
            "away, or give another trainer.experiment_name"
        )


def checkpoint_to_go_on_from(path: str, run_dir: Path, tell: Callable[[str], None] = print) -> Path | None:
    """What `trainer.load_checkpoint_path` names, for the run in `run_dir`. Raises UserError where it cannot be.

    None: `auto` finds nothing to go on from, and the run begins anew.
    """
    if path == "auto" and not _had_checkpoints(run_dir):
        tell(f"trainer.load_checkpoint_path=auto: {run_dir} holds no checkpoint yet; the run begins anew")
        return None
    checkpoint = find_checkpoint(path, run_dir, tell)
    refuse_later_checkpoints(checkpoint, run_dir)
    return checkpoint


def changes_since(checkpoint: Path, config: Config, versions: dict[str, str]) -> list[str]:
    """One line for each setting, the trainer's own left out, each library version, and the number of ranks, that
    differ from the checkpoint's."""
    before, now = flatten(load_config([f"config={checkpoint / 'config.yaml'}"])), flatten(config)
    manifest = read_manifest(checkpoint)
    old = manifest["versions"]
    changed = [(name, before[name], value) for name, value in now.items() if not name.startswith("trainer.")]
    changed += [(name, old.get(name, "unknown"), version) for name, version in versions.items()]
    changed.append(("the number of ranks", manifest["num_ranks"], current_world().size))
    return [f"changed since {checkpoint.name}: {name} was {old}, is {new}" for name, old, new in changed if old != new]


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The run's finished checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("global_step_*")
    steps = {path: match for path in folders if (match := FOLDER.fullmatch(path.name))}
    return sorted(steps, key=lambda path: int(steps[path][1]))


@dataclass(frozen=True)
class Best:
    """The checkpoint with the best value of a metric."""

    path: Path
    value: float


def best_checkpoint(run_dir: Path, metric: str, mode: str = "max") -> Best | None:
    """By the values that the checkpoints' manifests hold; the later of equals. None where none holds one."""
    best: Best | None = None
    for path in list_checkpoints(run_dir):
        value = _metric_of(path, metric)
        is_better = best is None or (value <= best.value if mode == "min" else value >= best.value)
        if not math.isnan(value) and is_better:
            best = Best(path, value)
    return best


def refuse_unknown_metric(config: Config) -> None:
    """Raises UserError where `trainer.save_best` names no metric, or one that no checkpoint would have."""
    name = config.trainer.save_best
    if not name:
        return
    if describe(name) is None:
        nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
        raise UserError(f"trainer.save_best={name} is no metric; did you mean {nearest}? docs/metrics.md lists them")
    if name.startswith("val/") and not config.data.val_files:
        raise UserError(f"trainer.save_best={name} needs held-out questions; give data.val_files")


def drop_old_checkpoints(run_dir: Path, config: Config) -> None:
    """Keeps the newest `trainer.save_limit` (0: all) and the best by `trainer.save_best`."""
    trainer = config.trainer
    if not trainer.save_limit:
        return
    best = best_checkpoint(run_dir, trainer.save_best, trainer.save_best_mode) if trainer.save_best else None
    for path in list_checkpoints(run_dir)[: -trainer.save_limit]:
        if best is None or path != best.path:
            shutil.rmtree(path)


def _metric_of(checkpoint: Path, metric: str) -> float:
    try:
        return float(read_manifest(checkpoint).get("metrics", {}).get(metric, math.nan))
    except (DamageError, TypeError, ValueError):
        return math.nan
