"""All that outlives a step beside the weights, in plain values and tensors: what `trainer.pt` holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.data.sampler import QuestionSampler
from diva_engine.distributed import current_world, gather_from_all
from diva_engine.trainer.checkpoint import load_trainer_state
from diva_engine.trainer.random_state import random_state, set_random_state
from diva_engine.trainer.run_progress import Progress
from diva_engine.trainer.sharded_tensors import read_tensors
from diva_engine.trainer.update import Updater


def run_state(
    progress: Progress, sampler: QuestionSampler, ledger: DifficultyLedger, updater: Updater
) -> dict[str, Any]:
    """A copy that later steps leave alone. A collective call: the random states are those of all ranks."""
    return {
        "progress": vars(progress).copy(),
        "sampler": sampler.state_dict(),
        "ledger": ledger.state_dict(),
        "updater": updater.state_dict(),
        "random": gather_from_all(random_state()),
    }


def load_run_state(checkpoint: Path, sampler: QuestionSampler, ledger: DifficultyLedger, updater: Updater) -> Progress:
    """Puts the parts where the checkpoint's were; random states only where there are as many ranks as then."""
    state, world = load_trainer_state(checkpoint), current_world()
    sampler.load_state_dict(state["sampler"])
    ledger.load_state_dict(state["ledger"])
    updater.load_state_dict(state["updater"], partial(read_tensors, checkpoint / "state"))
    if len(state["random"]) == world.size:
        set_random_state(state["random"][world.rank])
    return Progress(**state["progress"])
