"""What vLLM does to the process that it runs in, undone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist


@contextlib.contextmanager
def without_side_effects() -> Iterator[None]:
    """vLLM seeds every global generator anew and draws from torch's; on the CPU it takes `set_num_threads` away."""
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    python, numpy, on_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(on_cpu)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


@contextlib.contextmanager
def default_group_kept(is_kept: bool) -> Iterator[None]:
    """vLLM ends the default process group too, even where it did not begin it."""
    destroy = dist.destroy_process_group

    def destroy_others(group: dist.ProcessGroup | None = None) -> None:
        if group is not None or not is_kept:
            destroy(group)

    dist.destroy_process_group = destroy_others
    try:
        yield
    finally:
        dist.destroy_process_group = destroy
