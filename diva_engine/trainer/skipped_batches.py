"""Batches whose loss or gradient was not finite, kept so that they can be run again.

skipped_batches/step_N.pt    the examples with their credit, and what the loss was divided by

`load_batch` reads one back; it holds plain values and tensors, and is read without unpickling anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from diva_engine.distributed import current_world
from diva_engine.records import AnswerTree, Prompt, UserError
from diva_engine.trainer.batches import Batch, Example

FOLDER = "skipped_batches"
KEPT = 4  # a batch holds its pictures: the newest few are enough to find what is wrong with them
PROMPT_FIELDS = ("token_ids", "position_ids", "pixel_values", "image_grid_thw", "prefix_ids", "text")


def save_batch(run_dir: Path, step: int, batch: Batch) -> Path:
    """Writes the batch below `run_dir` and drops the oldest beyond KEPT. Several of one step replace each other."""
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    world = current_world()
    suffix = f"_rank_{world.rank}" if world.size > 1 else ""
    path = folder / f"step_{step}{suffix}.pt"
    state = {
        "examples": [_example_state(example) for example in batch.examples],
        "num_tokens": batch.num_tokens,
        "num_rollouts": batch.num_rollouts,
    }
    torch.save(state, path)
    own = sorted(folder.glob(f"step_*{suffix}.pt"), key=lambda file: file.stat().st_mtime_ns)
    for old in own[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_batch(path: Path) -> Batch:
    """A batch as it was; the images as pixels for engines with their own processor are not kept."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        examples = [_example_of(found) for found in state["examples"]]
        return Batch(examples, state["num_tokens"], state["num_rollouts"])
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; give one of the run's {FOLDER}") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is no batch ({type(error).__name__}); give one of the run's {FOLDER}") from None


def _example_state(example: Example) -> dict[str, Any]:
    tree = example.tree
    values = {field.name: getattr(example, field.name) for field in fields(example) if field.name != "tree"}
    return values | {
        "prompt": {name: getattr(tree.prompt, name) for name in PROMPT_FIELDS},
        "branches": tree.branches,
        "train_prefix": tree.train_prefix,
    }


def _example_of(state: Mapping[str, Any]) -> Example:
    tree = AnswerTree(Prompt(**state["prompt"]), state["branches"], state["train_prefix"])
    return Example(tree, **{field.name: state[field.name] for field in fields(Example) if field.name != "tree"})
