"""Runs a list of jobs over several processes; every finished run is one file, so that a killed sweep goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.learn.regimes import REGIMES
from bench.learn.run import Job, Stop, run

Results = Mapping[str, Any]
Targets = Mapping[str, Mapping[str, float]]  # regime -> {"all": ..., "hard": ...}


@dataclass(frozen=True)
class Folder:
    """Where bases and runs lie."""

    path: Path

    def base(self, regime: str) -> Path:
        return self.path / "bases" / REGIMES[regime].base

    def file(self, job: Job) -> Path:
        return self.path / "runs" / f"{job.name}.json"

    def is_done(self, job: Job) -> bool:
        return self.file(job).exists()

    def read(self, job: Job) -> Results:
        found: Results = json.loads(self.file(job).read_text(encoding="utf-8"))
        return found

    def write(self, job: Job, results: Results) -> None:
        """Whole or not at all."""
        target = self.file(job)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
        unfinished.write_text(json.dumps(results, sort_keys=True) + "\n", encoding="utf-8")
        unfinished.replace(target)


def run_job(job: Job, folder: Folder, stop: Stop) -> str:
    """One run in a worker process; returns its name. A worker whose sweep was killed starts no further run."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit("the sweep is gone")
    if not folder.is_done(job):
        folder.write(job, run(job, folder.base(job.regime), stop))
    return job.name


def run_jobs(
    jobs: Sequence[Job],
    folder: Folder,
    stop_of: Callable[[Job], Stop],
    num_workers: int,
    report: Callable[[str], None],
) -> None:
    """Runs what is not done yet, in order. A job that fails is reported and does not stop the others."""
    missing = [job for job in dict.fromkeys(jobs) if not folder.is_done(job)]
    report(f"{len(jobs)} runs, {len(jobs) - len(missing)} done before")
    began = time.monotonic()
    if num_workers == 1:
        for number, job in enumerate(missing):
            run_job(job, folder, stop_of(job))
            report(_progress(job.name, number + 1, len(missing), time.monotonic() - began))
        return
    # Spawned, not forked: torch's threads do not survive a fork. A worker stays, so torch is imported once.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        futures = {pool.submit(run_job, job, folder, stop_of(job)): job for job in missing}
        for number, (job, error) in enumerate(_finished(futures)):
            line = f"{job.name} FAILED: {error!r}" if error else job.name
            report(_progress(line, number + 1, len(missing), time.monotonic() - began))


def _finished(futures: Mapping[Future[str], Job]) -> Iterator[tuple[Job, BaseException | None]]:
    for future in as_completed(futures):
        yield futures[future], future.exception()


def _progress(line: str, done: int, total: int, seconds: float) -> str:
    left = (total - done) * seconds / done
    return f"[{done}/{total}, {left / 60:.0f} min left] {line}"
