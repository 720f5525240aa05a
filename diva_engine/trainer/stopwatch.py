"""Where a step's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from diva_engine.trainer.heartbeat import Heartbeat


class Stopwatch:
    """Seconds of wall-clock and CPU time by phase, summed over the calls of a step; `heartbeat` is told each phase."""

    def __init__(self, heartbeat: Heartbeat | None = None) -> None:
        self._heartbeat = heartbeat
        self.wall_s: dict[str, float] = defaultdict(float)
        self.cpu_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            with nullcontext() if self._heartbeat is None else self._heartbeat.phase(name):
                yield
        finally:
            self.wall_s[name] += time.perf_counter() - wall
            self.cpu_s[name] += time.process_time() - cpu

    def metrics(self) -> dict[str, float]:
        return {f"time/{name}_s": seconds for name, seconds in self.wall_s.items()}

    def throughput(self, num_tokens: float, rollout_cpu_s: float) -> dict[str, float]:
        """Of a step that sampled `num_tokens`; its generation took so many CPU seconds over all ranks."""
        return {
            "throughput/tokens_per_s": num_tokens / self.wall_s["step"],
            "throughput/rollout_tokens_per_cpu_s": num_tokens / max(rollout_cpu_s, 1e-9),
        }
