"""What a finished run leaves, for two runs to be held against each other: bit for bit, or up to float32's noise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diva_engine.policy.model import load_policy
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


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The parts of two outcomes that are not equal."""
    return [name for name, value in expected.items() if found[name] != value]


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


# The sampler's gap is the noise of float32 itself.
UNLIKE = ("time/", "throughput/", "sync/", "mismatch/")


def assert_same(one: Path, other: Path) -> None:
    """Two runs of three steps, whose tokens were noted, are the same up to the noise of float32: token ids exactly."""
    rollouts = [rows_of(run, "rollouts.jsonl") for run in (one, other)]
    # Where the reward holds a divergence, it and what is made of it have the noise of float32.
    measured = [[[row.pop("reward"), row.pop("advantage")] for row in rows] for rows in rollouts]
    assert rollouts[0] == rollouts[1]
    tokens = [rows_of(run, "tokens.jsonl") for run in (one, other)]
    assert [len(group) for step in tokens[0] for group in step].count(4) >= 3, "rollouts were trained"
    assert tokens[0] == tokens[1]
    torch.testing.assert_close(*map(torch.tensor, measured), rtol=1e-5, atol=1e-6)
    steps = [[row for row in rows_of(run) if "actor/grad_norm" in row] for run in (one, other)]
    pairs = list(zip(*steps, strict=True))
    assert len(pairs) == 3
    assert sum(row["actor/grad_norm"] > 0.01 for row, _ in pairs) >= 2, "nothing was trained"
    for row, found in pairs:
        expected = {metric: value for metric, value in row.items() if not metric.startswith(UNLIKE)}
        assert {metric: found[metric] for metric in expected} == pytest.approx(expected, abs=1e-6, rel=1e-5)
    checkpoints = [run / "checkpoints/global_step_3" for run in (one, other)]
    weights = [load_policy(checkpoint / "policy").model.state_dict() for checkpoint in checkpoints]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
    ledgers = [torch.load(c / "trainer.pt", weights_only=True)["ledger"] for c in checkpoints]
    entropies = [ledger.pop("visual_entropy") for ledger in ledgers]  # measured by the model itself
    torch.testing.assert_close(*entropies, rtol=1e-5, atol=0, equal_nan=True)
    columns = [{k: v for k, v in ledger.items() if isinstance(v, torch.Tensor)} for ledger in ledgers]
    torch.testing.assert_close(*columns, rtol=0, atol=0, equal_nan=True)
    plain = [repr({k: v for k, v in ledger.items() if not isinstance(v, torch.Tensor)}) for ledger in ledgers]
    assert plain[0] == plain[1]
