"""Writes checkpoints while the run goes on: a step waits only for the copy of its state into host memory."""

from __future__ import annotations

import io
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import diva_engine
from diva_engine.config import Config
from diva_engine.distributed import current_world
from diva_engine.policy.lora import save_adapter
from diva_engine.policy.model import Policy
from diva_engine.policy.weights import adapter_weights, full_weights
from diva_engine.settings import save_config
from diva_engine.trainer.checkpoint import drop_old_checkpoints
from diva_engine.trainer.checkpoint_files import PARTIAL, publish, seal, write_manifest
from diva_engine.trainer.sharded_tensors import copy_to_host, write_tensors

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The state after a step, in host memory."""

    step: int
    weights: Mapping[str, Tensor]  # whole, by their Hugging Face names; the first rank's alone
    adapters: Mapping[str, Tensor]  # where they are trained, likewise
    tensors: Mapping[str, Tensor]  # this rank's shards of masters and moments
    state: bytes  # trainer.pt
    metrics: Mapping[str, float]  # of the step, as far as `trainer.save_best` names them


class CheckpointSaver:
    """Saves the run's checkpoints, one at a time; every rank calls the same methods in the same order.

    A checkpoint that cannot be written costs the run nothing but that checkpoint: it is told on stderr, counted in
    `num_failed`, and the ones before it stay.
    """

    def __init__(self, run_dir: Path, policy: Policy, config: Config) -> None:
        self._folder, self._policy, self._config = run_dir / "checkpoints", policy, config
        self._world = current_world()
        # Of its own, so that what the writers tell each other never meets the training's collectives.
        self._group = dist.new_group(backend="gloo") if self._world.size > 1 else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.num_failed = 0
        self.last_error = ""  # why the newest checkpoint was not written; empty: it was
        self._last_progress: Mapping[str, Any] | None = None  # of the newest checkpoint, written or under way
        self._waited_s: float | None = None  # how long `save` has kept the run since `take_metrics`

    def save(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], best: Mapping[str, float]
    ) -> None:
        """Copies the state after `step` and has it written.

        Args:
            tensors: what is sharded over the ranks; `state`: plain values and tensors, the same on every rank;
            best: the value of `trainer.save_best` where the step has one.

        Does nothing where the same checkpoint is there already: it would have the same progress.
        """
        began = time.perf_counter()
        self.wait()
        if state["progress"] == self._last_progress and not self.last_error:
            return
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        weights = self._own(full_weights(self._policy))
        adapters = self._own(adapter_weights(self._policy)) if self._policy.lora else {}
        snapshot = Snapshot(step, weights, adapters, copy_to_host(tensors), buffer.getvalue(), best)
        self._pending = self._executor.submit(self._write_or_tell, snapshot)
        self._last_progress = state["progress"]
        if not self._config.trainer.async_save:
            self.wait()
        self._waited_s = (self._waited_s or 0.0) + time.perf_counter() - began

    def path_of(self, step: int) -> Path:
        return self._folder / f"global_step_{step}"

    def resume(self, checkpoint: Path, progress: Mapping[str, Any]) -> None:
        """The run goes on from `checkpoint`, which it need not write again if it is its own."""
        if checkpoint.resolve().parent == self._folder.resolve():
            self._last_progress = dict(progress)

    def take_metrics(self) -> dict[str, float]:
        """Checkpoints that could not be written so far; the time that the run waited since the last call, if it did."""
        waited_s, self._waited_s = self._waited_s, None
        waited = {} if waited_s is None else {"time/save_s": waited_s}
        return {"checkpoint/failed": float(self.num_failed), **waited}

    def wait(self) -> None:
        """Until the checkpoint under way is written or has failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        self.wait()
        self._executor.shutdown()

    def _own(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Whole weights on the CPU: every rank takes part, the first keeps them."""
        return {name: weight.to("cpu", copy=True) for name, weight in weights if self._world.is_first}

    def _write_or_tell(self, snapshot: Snapshot) -> None:
        partial = self.path_of(snapshot.step).with_suffix(PARTIAL)
        try:
            self._write(snapshot, partial)
            self.last_error = ""
        except Exception as error:  # full disk, lost mount, broken quota: each library has its own class for them
            self.num_failed += 1
            self.last_error = _first_line(error)
            if self._world.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                print(
                    f"warning: the checkpoint of step {snapshot.step} was not written ({self.last_error}); the earlier "
                    "ones stay, the run goes on",
                    file=sys.stderr,
                )

    def _write(self, snapshot: Snapshot, partial: Path) -> None:
        self._together(lambda: self._begin(partial))
        write_tensors(partial / "state", snapshot.tensors, self._group)
        seals = self._together(lambda: self._write_own(snapshot, partial))
        self._together(lambda: self._finish(snapshot, partial, {k: v for found in seals for k, v in found.items()}))

    def _begin(self, partial: Path) -> None:
        if self._world.is_first:
            for left in self._folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(left)
            (partial / "state").mkdir(parents=True)

    def _write_own(self, snapshot: Snapshot, partial: Path) -> dict[str, dict[str, Any]]:
        """The seals of the files that are this rank's."""
        own = list((partial / "state").glob(f"shard-{self._world.rank + 1:05d}-*"))
        if self._world.is_first:
            self._policy.save(partial / "policy", snapshot.weights)
            if snapshot.adapters:
                save_adapter(partial / "adapter", self._policy.lora, snapshot.adapters)
            (partial / "trainer.pt").write_bytes(snapshot.state)
            save_config(self._config, partial / "config.yaml")
            own += [path for path in partial.rglob("*") if path.is_file() and path.parent.name != "state"]
        return seal(partial, own)

    def _finish(self, snapshot: Snapshot, partial: Path, seals: Mapping[str, Any]) -> None:
        if not self._world.is_first:
            return
        manifest = {"step": snapshot.step, "num_ranks": self._world.size, "versions": versions()}
        write_manifest(partial, {**manifest, "metrics": dict(snapshot.metrics), "files": seals})
        publish(partial, self.path_of(snapshot.step))
        drop_old_checkpoints(self._folder.parent, self._config)

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Every rank's result, or on every rank the first error of any: none may wait for one that has failed."""
        if self._group is None:
            return [work()]
        result, error = None, ""
        try:
            result = work()
        except Exception as raised:
            error = f"rank {self._world.rank}: {_first_line(raised)}"
        outcomes: list[Any] = [None] * self._world.size
        dist.all_gather_object(outcomes, (result, error), group=self._group)
        errors = [error for _, error in outcomes if error]
        if errors:
            raise OSError(errors[0])
        return [result for result, _ in outcomes]


def versions() -> dict[str, str]:
    """What the numbers of a run depend on."""
    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return {"diva_engine": diva_engine.__version__, "python": platform.python_version(), **libraries}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
