"""How much memory a call needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure(device: str) -> bool:
    return device == "cuda" or RESET.exists()


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most memory in use during a call beyond what was in use before: torch's on CUDA, the process's on Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    RESET.write_text("5")  # the peak of the resident memory begins anew
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(found[1]) if found else 0


def peak_resident_bytes() -> int:
    """The most memory this process ever held."""
    return _status_bytes("VmHWM")
