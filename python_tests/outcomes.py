"""What a finished run leaves, in a form that two runs can be held against each other in, bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from diva_engine.trainer.checkpoint import list_checkpoints, load_trainer_state

TIMES = ("time/", "throughput/")


def rows_of(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """Metrics, rollouts, and all that the newest checkpoint holds; times left out."""
    newest = list_checkpoints(run_dir)[-1]
    state = load_trainer_state(newest)
    for name in ("train_wall_s", "train_cpu_s"):
        state["progress"].pop(name)
    return {
        "newest": newest.name,
        "metrics": without_times(rows_of(run_dir)),
        "rollouts": rows_of(run_dir, "rollouts.jsonl"),
        "weights": _digests(newest / "policy"),
        "masters and moments": _digests(newest / "state"),
        "trainer.pt": {name: _plain(value) for name, value in state.items()},
    }


def _digests(folder: Path) -> dict[str, str]:
    """Tensor by tensor: the order of a safetensors header is not fixed."""
    files = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return {f"{file}: {name}": _digest(tensor) for file, found in files.items() for name, tensor in found.items()}


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """Tensors as digests: a NaN is not equal to itself, its bits are."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), _digest(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
