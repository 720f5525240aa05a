"""What every benchmark is made of: a case is one op at one size, its contenders do the same work.

A file bench_<op>.py holds a generator of cases and one line that makes them pytest benchmarks:

    def cases(device): yield Case("group_stats", "1,024 groups of 5", bytes_moved, {"diva_engine": ..., "torch": ...})

    test_group_stats = benchmark_cases(cases)
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

OURS = "diva_engine"
# One call on a GPU is too short to wait for: this many are launched, then the device is waited for.
CUDA_CALLS = 50
PEERS = (
    "pillow",
    "opencv-python-headless",
    "torchvision",
    "kornia",
    "liger-kernel",
    "verl",
    "cupy-cuda13x",
    "trl",
    "vllm",
)
PACKAGES = ("diva-engine", "torch", "numpy", "transformers", "triton", *PEERS)

Cases = Callable[[str], Iterator["Case"]]


@dataclass(frozen=True)
class Case:
    """One op at one size."""

    op: str
    size: str
    bytes_moved: int  # what a call must at least read and write
    contenders: Mapping[str, Callable[[], Any]]  # OURS and whom it is compared with
    extra: Mapping[str, Any] = field(default_factory=dict)  # written to the results as it is


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def benchmark_cases(cases: Cases) -> Callable[..., None]:
    """A pytest benchmark for every contender of every case."""
    # Named here, made again when its turn comes: the tensors of one case at a time fit into memory.
    named = [(i, case.op, case.size, name) for i, case in enumerate(cases(device())) for name in case.contenders]
    turn = _Turn(cases)

    @pytest.mark.parametrize(
        ("index", "contender"), [(i, name) for i, _, _, name in named], ids=["-".join(words) for _, *words in named]
    )
    def test_speed(index: int, contender: str, benchmark: Any) -> None:
        case = turn.case(index)
        run, calls = case.contenders[contender], 1
        if device() == "cuda":
            run, calls = _launched_often(run), CUDA_CALLS
        benchmark.extra_info.update(case.extra)
        benchmark.extra_info.update(
            op=case.op, size=case.size, contender=contender, bytes_moved=case.bytes_moved, calls=calls
        )
        run()  # compiles and warms up
        benchmark(run)

    return test_speed


class _Turn:
    """The case whose turn it is; the ones before it are gone."""

    def __init__(self, cases: Cases) -> None:
        self._cases = cases
        self._left: Iterator[Case] = iter(())
        self._index = -1
        self._case: Case | None = None

    def case(self, index: int) -> Case:
        if self._case is None or index < self._index:
            self._left, self._index = self._cases(device()), -1
        while self._index < index:
            self._case = None
            self._case, self._index = next(self._left), self._index + 1
        return self._case


def _launched_often(run: Callable[[], Any]) -> Callable[[], None]:
    def launched() -> None:
        for _ in range(CUDA_CALLS):
            run()
        torch.cuda.synchronize()

    return launched


def copy_bytes_per_second() -> float:
    """What this device's memory can do: the best of some copies far larger than any cache, read and written."""
    source = torch.ones(1 << 26 if device() == "cpu" else 1 << 29)
    target = torch.empty_like(source)
    if device() == "cuda":
        source, target = source.cuda(), target.cuda()
    best = min(_seconds(lambda: target.copy_(source)) for _ in range(8))
    return 2 * source.nbytes / best


def _seconds(run: Callable[[], Any]) -> float:
    if device() == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def environment() -> dict[str, Any]:
    """Device, versions and commit: what a number means nothing without."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "device": torch.cuda.get_device_name() if device() == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "commit": _commit(),
        "packages": {name: version for name, version in versions.items() if version is not None},
        "not_installed": [name for name in PEERS if versions[name] is None],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
