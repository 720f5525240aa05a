"""Kills the trainer with SIGKILL at drawn moments, resumes it each time, and holds what comes out against a run that
nobody disturbed.

    python -m python_tests.torture.kills --count 30 --seed 0

Two kinds of moments: a time since the start, and a place in the code (the n-th call of a function, before or after it),
so that the short ones (between two files of a checkpoint, around its renaming) are met too. Every trainer is a process
of its own, forked from a server that has the libraries loaded: a start costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from python_tests.models import build_tiny_model
from python_tests.outcomes import differences, outcome_of
from python_tests.questions import EVEN_LENGTH_REWARD, write_questions

ALGORITHMS = ("diva", "hint_grpo")
NUM_STEPS = 6
RUN_LIMIT_S = 300.0  # a run of some seconds, on a busy machine

# Where to kill -> how often a run of six steps comes there, about.
PLACES = {
    "rollout: diva_engine.trainer.collect.Collector.ask": 8,
    "update: diva_engine.trainer.update.Updater.update": 6,
    "update: diva_engine.trainer.master_weights.MasterWeights.write_back": 6,
    "sync: diva_engine.rollout.native_engine.NativeEngine.update_weights": 6,
    "metrics: diva_engine.trainer.json_lines.JsonLines.append": 30,
    "staging: diva_engine.trainer.checkpoint_saver.copy_to_host": 6,
    "saving: diva_engine.trainer.checkpoint_saver.write_tensors": 6,
    "saving: diva_engine.policy.model.Policy.save": 6,
    "saving: diva_engine.trainer.checkpoint_files._seal_one": 60,
    "saving: diva_engine.trainer.checkpoint_saver.write_manifest": 6,
    "renaming: diva_engine.trainer.checkpoint_saver.publish": 6,
    "renaming: diva_engine.trainer.checkpoint_files.os.rename": 6,
    "dropping: diva_engine.trainer.checkpoint.shutil.rmtree": 4,
    "summary: diva_engine.trainer.metrics.MetricsLogger.write_summary": 1,
}


@dataclass(frozen=True)
class Moment:
    """When a trainer is killed: `delay_s` after its start, or around the `call`-th call of `place`."""

    kind: str
    delay_s: float = 0.0
    place: str = ""
    call: int = 0
    is_after: bool = False


@dataclass
class Report:
    """What was done to the runs and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)  # by kind
    resumed: int = 0  # starts from a checkpoint
    finished: int = 0  # runs compared
    lost: list[str] = field(default_factory=list)  # what differed; nothing should
    wall_s: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        anew = self.kills.total() - self.resumed
        lines = [
            f"{self.kills.total()} kills ({kinds}) in {self.wall_s:.0f} s",
            f"{self.resumed} resumed from a checkpoint, {anew} begun anew before the first",
            f"{self.finished} runs finished and compared, {len(self.lost)} differ from the undisturbed one",
        ]
        return "\n".join([*lines, *self.lost])


def draw_moment(draw: random.Random, run_s: float) -> Moment:
    """A third by the clock over a run's length, the rest by place."""
    if draw.random() < 1 / 3:
        return Moment("by the clock", delay_s=draw.uniform(0, run_s))
    name = draw.choice(list(PLACES))
    kind, place = name.split(": ")
    return Moment(kind, place=place, call=draw.randint(1, PLACES[name]), is_after=draw.random() < 0.5)


def kill_many(
    count: int,
    seed: int,
    folder: Path,
    tell: Callable[[str], None] = lambda line: None,
    *,
    fewest: int = 0,
    until: float = math.inf,
) -> Report:
    """Runs trainers until `count` of them were killed and the last run is finished and compared; ends at a loss.

    Later than `until` (of time.monotonic) no more are killed, once `fewest` were.
    """

    def is_on() -> bool:
        kills = report.kills.total()
        return kills < fewest or (kills < count and time.monotonic() < until)

    draw, report, began = random.Random(seed), Report(), time.monotonic()
    make_inputs(folder)
    whole = {algorithm: _undisturbed(folder, algorithm) for algorithm in ALGORITHMS}
    while is_on() and not report.lost:
        number = report.finished
        algorithm = ALGORITHMS[number % len(ALGORITHMS)]
        expected, run_s = whole[algorithm]
        run_dir = folder / f"run_{number}"
        try:
            while start(folder, run_dir, algorithm, draw_moment(draw, run_s) if is_on() else None, report):
                tell(f"{report.kills.total()}/{count} kills, run {number}")
        except AssertionError as error:
            report.lost.append(f"run {number} ({algorithm}): {error}")
            break
        report.finished += 1
        report.lost += [f"run {number} ({algorithm}): {n} differ" for n in differences(outcome_of(run_dir), expected)]
        shutil.rmtree(run_dir)
    report.wall_s = time.monotonic() - began
    return report


def start(folder: Path, run_dir: Path, algorithm: str, moment: Moment | None, report: Report) -> bool:
    """Starts the run, or resumes it; whether it was killed before its end."""
    checkpoints = run_dir / "checkpoints"
    report.resumed += any(checkpoints.glob("global_step_*")) and not _holds_only_halves(checkpoints)
    words = [*settings(folder, run_dir, algorithm), "trainer.load_checkpoint_path=auto"]
    process = _context().Process(target=_train, args=(words, moment, folder / "output.txt"))
    process.start()
    process.join(moment.delay_s if moment and not moment.place else RUN_LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode == -signal.SIGKILL and moment is not None:
        report.kills[moment.kind] += 1
        return True
    if process.exitcode != 0:
        raise AssertionError(f"exit code {process.exitcode}:\n{(folder / 'output.txt').read_text()}")
    return False


def settings(folder: Path, run_dir: Path, algorithm: str) -> list[str]:
    return [
        f"algorithm={algorithm}",
        f"data.train_files={folder / 'train.parquet'}",
        f"data.val_files={folder / 'val.parquet'}",
        f"model={folder / 'model'}",
        "data.rollout_batch_size=2",
        "data.max_response_length=6",
        "worker.rollout.n=4",
        "worker.actor.optim.lr=1e-3",
        f"worker.reward.reward_function={folder / 'reward.py'}:score",
        "trainer.logger=[file]",
        f"trainer.max_steps={NUM_STEPS}",
        "trainer.val_freq=2",
        "trainer.save_freq=1",
        "trainer.save_best=val/accuracy",
        f"trainer.save_checkpoint_path={run_dir}",
    ]


def make_inputs(folder: Path) -> None:
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=32)
    write_questions(folder / "train.parquet", 6)
    write_questions(folder / "val.parquet", 2)
    (folder / "reward.py").write_text(EVEN_LENGTH_REWARD)


def _undisturbed(folder: Path, algorithm: str) -> tuple[dict[str, Any], float]:
    """Its outcome and how many seconds it took."""
    began = time.monotonic()
    assert not start(folder, folder / algorithm, algorithm, None, Report())
    return outcome_of(folder / algorithm), time.monotonic() - began


def _holds_only_halves(checkpoints: Path) -> bool:
    """No checkpoint has its name yet; one that is whole but for its name counts."""
    return all(
        path.suffix == ".partial" and not (path / "manifest.json").exists()
        for path in checkpoints.glob("global_step_*")
    )


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["python_tests.torture.loaded"])
    return context


def _train(words: list[str], moment: Moment | None, output: Path) -> None:
    """The trainer's process: `main`, with a SIGKILL where the moment says."""
    from diva_engine.train import main

    with output.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if moment is not None and moment.place:
            _arm(moment)
        code = main(words)
    os._exit(code)  # nothing of the server's that forked it is to be run


def _arm(moment: Moment) -> None:
    owner, _, name = moment.place.rpartition(".")
    holder = resolve_name(owner)
    original, calls = getattr(holder, name), itertools.count(1)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        is_now = next(calls) == moment.call
        with _killed(is_now and not moment.is_after, is_now and moment.is_after):
            return original(*args, **kwargs)

    setattr(holder, name, deadly)


@contextlib.contextmanager
def _killed(before: bool, after: bool) -> Iterator[None]:
    if before:
        os.kill(os.getpid(), signal.SIGKILL)
    yield
    if after:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_many(chosen.count, chosen.seed, Path(folder), print)
    print(report)
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
