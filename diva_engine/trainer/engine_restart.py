"""A rollout engine that fails is built anew, once between two weight syncs, and asked the same again."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from torch import Tensor

from diva_engine.distributed import current_world, gather_results
from diva_engine.records import GenerationJob, OnAnswered, Rollout, RolloutEngine, Sampling, UserError
from diva_engine.trainer.faults import FaultLog, StepFailed
from diva_engine.trainer.memory import free_memory

Weights = Iterable[tuple[str, Tensor]]


class EngineFailed(UserError):
    """The engine of one of several ranks has failed: all of them must come together to start theirs anew."""


class RestartedEngine:
    """A `RolloutEngine` around the one that `build` makes.

    Where `generate` raises anything but UserError, the engine is dropped, built anew and given the last synced
    weights; the same jobs, with the same seeds, then give the same rollouts. A second failure before the next weight
    sync raises StepFailed. `weights` yields the policy's weights, which change only before a sync.
    With `among_ranks` False the first failure does, where there are several ranks.
    """

    def __init__(
        self,
        build: Callable[[], RolloutEngine],
        weights: Callable[[], Weights],
        faults: FaultLog | None = None,
        *,
        among_ranks: bool = True,
    ) -> None:
        self._build, self._weights, self._faults = build, weights, faults or FaultLog()
        self._among_ranks = among_ranks
        self._engine = build()
        self._policy_version: int | None = None  # None: never synced
        self._has_restarted = False  # since the last sync

    def update_weights(self, policy_version: int, weights: Weights) -> None:
        self._engine.update_weights(policy_version, weights)
        self._policy_version, self._has_restarted = policy_version, False

    def sleep(self) -> None:
        self._engine.sleep()

    def close(self) -> None:
        self._engine.close()

    def generate(
        self, jobs: Sequence[GenerationJob], sampling: Sampling, on_answered: OnAnswered | None = None
    ) -> list[list[Rollout]]:
        while True:
            try:
                return self._engine.generate(jobs, sampling, on_answered)
            except UserError:
                raise
            except Exception as error:
                self._refuse_restart(error)
                reason, detail = describe_error(error), traceback.format_exc()
            # Outside of the handler, whose traceback holds the failed engine's memory.
            self._restart(reason, detail)

    def _refuse_restart(self, error: Exception) -> None:
        world = current_world()
        if world.size > 1:  # the weights of a sharded policy can be gathered by all ranks together only
            self._faults.record_traceback(error)
            raise EngineFailed(f"{describe_error(error)} on rank {world.rank}") from error
        if self._has_restarted:
            raise StepFailed(f"the rollout engine failed twice within a step ({describe_error(error)})") from error

    def restart_on_all_ranks(self, failure: EngineFailed) -> None:
        """After one rank's engine has failed and all ranks know it: each starts its own anew. A collective call."""
        if not self._among_ranks:
            raise StepFailed(f"the rollout engine failed, and can be started anew with the run only ({failure})")
        if self._has_restarted:
            raise StepFailed(f"the rollout engine failed twice within a step ({failure})")
        self._restart(str(failure), detail="")

    def _restart(self, reason: str, detail: str) -> None:
        self._faults.record(
            "rollout/engine_restarts",
            f"the rollout engine failed ({reason}) and was started anew with the weights of the last sync",
            detail=detail,
        )
        self._has_restarted = True
        with suppress(Exception):  # it has failed; what it cannot give back by itself goes with the object
            self._engine.close()
        del self._engine
        free_memory()
        gather_results(self._rebuild)
        if self._policy_version is not None:
            self._engine.update_weights(self._policy_version, self._weights())

    def _rebuild(self) -> None:
        try:
            self._engine = self._build()
        except Exception as error:
            raise StepFailed(f"the rollout engine cannot be started anew ({describe_error(error)})") from error


def describe_error(error: Exception) -> str:
    """The kind of an error and the first line of its words."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:200]}" if words else type(error).__name__
