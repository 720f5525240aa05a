"""Tensors of a run as files, each rank its own shards, through torch.distributed.checkpoint.

The files are safetensors: nothing is unpickled when they are read. A checkpoint of any number of ranks can be read by
any other number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from diva_engine.distributed import current_world

# Said of every save and load of a run in one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

FILE_BYTES = 512 << 20  # about so much a file and rank: a file is held in memory twice while it is written


def copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later steps leave alone; a sharded tensor stays sharded."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """This rank's shards into `folder`, which exists. A collective call over `group`."""
    if not tensors:
        return
    files = _files_of(tensors, FILE_BYTES * current_world().size)
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with _plain_errors():
        dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=current_world().size == 1)


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors` in place from what was written under their names. A collective call."""
    if not tensors:
        return
    reader = HuggingFaceStorageReader(str(folder))
    with _plain_errors():
        dcp.load(dict(tensors), storage_reader=reader, no_dist=current_world().size == 1)


def _files_of(tensors: Mapping[str, Tensor], file_bytes: int) -> dict[str, int]:
    """File number by tensor, from 1: the tensors in order, cut where `file_bytes` are full."""
    before = accumulate((tensor.nbytes for tensor in tensors.values()), initial=0)
    numbers = [total // file_bytes for total, _ in zip(before, tensors, strict=False)]
    position = {number: i for i, number in enumerate(dict.fromkeys(numbers), 1)}
    return {name: position[number] for name, number in zip(tensors, numbers, strict=True)}


@contextmanager
def _plain_errors() -> Iterator[None]:
    """The first rank's own error instead of a text of all ranks' tracebacks."""
    try:
        yield
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise first from None
