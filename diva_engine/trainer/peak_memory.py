"""The most memory that a piece of work held: of torch on CUDA; of this process on a CPU under Linux with glibc.

A process also holds what its allocator has not handed back, so on a CPU the number is an upper bound.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes(device: torch.device) -> int:
    """What is held now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    _hand_back()
    return _status_bytes("VmRSS")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that was held during `work`, what was there before included."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    _hand_back()
    _RESET.write_text("5", encoding="ascii")  # the peak of the resident memory begins anew
    work()
    return _status_bytes("VmHWM")


def _hand_back() -> None:
    """What earlier work has freed and the C library still holds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return 1024 * int(found[1]) if found else 0
