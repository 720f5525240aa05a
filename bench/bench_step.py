"""One whole training step, in this engine and in TRL's GRPOTrainer: same checkpoint, questions, pictures, answers.

    python -m bench.bench_step                      # needs trl: pip install 'diva-engine[trl]'
    python -m bench.bench_step --engines native,vllm,trl --vllm-python .venv-vllm/bin/python

Qwen2.5-VL of 5.07 M random parameters in float32, 16 prompts x 8 answers x 64 tokens, pictures of 64 and of 256 tokens.
Every engine runs in a process of its own on one thread; TRL once for every micro-batch size, and the fastest counts.
Numbers are CPU seconds: median, least and most of the steps after the first; memory is the most the process ever held.
A JSON line an engine goes to bench/results/step.jsonl.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.harness import environment
from bench.step_task import StepTask, build_checkpoint, task_json

RESULTS = Path(__file__).parent / "results" / "step.jsonl"
PHASES = ("step", "rollout", "reward", "update", "sync")
MODULES = {"native": "bench.step_engine", "vllm": "bench.step_engine", "trl": "bench.step_trl"}


@dataclass(frozen=True)
class StepResult:
    """One engine's steps; seconds by phase, one number a measured step."""

    engine: str
    task: StepTask
    cpu_s: Mapping[str, list[float]]
    wall_s: Mapping[str, list[float]]
    peak_bytes: int
    parameters: int

    def median(self, phase: str) -> float:
        return statistics.median(self.cpu_s[phase])

    @property
    def name(self) -> str:
        return f"trl, {self.task.micro_batch} at a time" if self.engine == "trl" else f"diva_engine, {self.engine}"

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.task.responses * self.task.tokens / self.median("step")


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(folder)
        for image_tokens in options.image_tokens:
            task = StepTask(folder, image_tokens=image_tokens, steps=options.steps + 1)
            results = [run_engine(engine, one, options.vllm_python) for engine, one in runs_of(task, options)]
            print_table(f"{image_tokens} image tokens", results)
            write_results(results)


def read_options() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["native", "trl"])
    parser.add_argument("--image-tokens", type=numbers, default=[64, 256])
    parser.add_argument("--steps", type=int, default=3, help="measured ones; one more warms up")
    parser.add_argument("--micro-batch-tokens", type=int, default=1024, help="of this engine")
    parser.add_argument("--trl-micro-batches", type=numbers, default=[4, 8, 16, 32])
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter of the environment that has vllm")
    options = parser.parse_args()
    if "trl" in options.engines and importlib.util.find_spec("trl") is None:
        parser.error("trl is not installed: pip install 'diva-engine[trl]', or --engines native")
    return options


def runs_of(task: StepTask, options: argparse.Namespace) -> list[tuple[str, StepTask]]:
    """Every engine, TRL once a micro-batch size."""
    runs = []
    for engine in options.engines:
        if engine == "trl":
            runs += [(engine, replace(task, micro_batch=size)) for size in options.trl_micro_batches]
        else:
            runs.append((engine, replace(task, engine=engine, micro_batch_tokens=options.micro_batch_tokens)))
    return runs


def run_engine(engine: str, task: StepTask, vllm_python: str = sys.executable, *, ranks: int = 1) -> StepResult:
    """The steps of one engine, in a process of its own, or in one a rank."""
    python = vllm_python if engine == "vllm" else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "task.json", Path(folder) / "result.json"]
        files[0].write_text(task_json(task))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [python, *torchrun, "-m", MODULES[engine], *map(str, files)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        measured = json.loads(files[1].read_text())
    steps = measured["steps"][1:]
    return StepResult(
        engine=engine,
        task=task,
        cpu_s=_by_phase([step["cpu_s"] for step in steps]),
        wall_s=_by_phase([step["wall_s"] for step in steps]),
        peak_bytes=measured["peak_bytes"],
        parameters=measured["parameters"],
    )


def _by_phase(steps: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The update is what a step does beside rollout, reward and sync: credit, loss, gradient, optimizer."""
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for step in steps:
        reward, sync = step["reward"], step.get("sync", 0.0)
        found["step"].append(step["step"])
        found["rollout"].append(step["rollout and reward"] - reward)
        found["reward"].append(reward)
        found["update"].append(step["step"] - step["rollout and reward"] - sync)
        found["sync"].append(sync)
    return found


def print_table(title: str, results: Sequence[StepResult]) -> None:
    table = Table(title=f"one step at {title}: CPU seconds, median (least to most); one thread")
    for heading in ("engine", *PHASES, "tokens/CPU s", "peak GB"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for result in results:
        cells = [_spread(result.cpu_s[phase]) for phase in PHASES]
        table.add_row(result.name, *cells, f"{result.tokens_per_cpu_s:,.0f}", f"{result.peak_bytes / 1e9:.2f}")
    console = Console(width=160)
    console.print(table)
    theirs = min((r for r in results if r.engine == "trl"), key=lambda r: r.median("step"), default=None)
    for ours in (r for r in results if r.engine != "trl") if theirs else ():
        faster = [
            f"{phase} {theirs.median(phase) / ours.median(phase):.1f}x" for phase in ("step", "rollout", "update")
        ]
        memory = f"peak memory 1/{theirs.peak_bytes / ours.peak_bytes:.1f}"
        console.print(f"{ours.name} beside {theirs.name}, its fastest: {', '.join(faster)}, {memory}")


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def write_results(results: Sequence[StepResult], path: Path = RESULTS, **more: Any) -> None:
    """A JSON line an engine: its seconds and memory, the task, versions and commit."""
    found = environment()
    with path.open("a", encoding="utf-8") as file:
        for result in results:
            line = {**asdict(result), "tokens_per_cpu_s": round(result.tokens_per_cpu_s), **more, "environment": found}
            line["task"].pop("model")
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
