"""The policy's weights cut over the ranks (FSDP2): each holds its share, a block is whole while it computes.

Weights, gradients and optimizer states are float32 shards; a block computes in the compute type, gradients are summed
over the ranks in float32. In hybrid sharding each group of ranks that follow each other holds a copy between them:
blocks are gathered within the group, gradients summed within it and then, shard by shard, over the groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn import Module

from diva_engine.policy.model import Policy


def shard_policy(
    policy: Policy,
    *,
    device: torch.device,
    compute_dtype: torch.dtype,
    ranks_a_copy: int | None = None,
    offload_params: bool = False,
) -> Policy:
    """The policy, its weights cut over all ranks as float32; they lie on `device`, or on the CPU between their uses.

    With `ranks_a_copy`, a divisor of the number of ranks, they are cut over so many, and each such group has a copy.
    """
    options: dict[str, Any] = {
        "mesh": _mesh(device.type, dist.get_world_size(), ranks_a_copy),
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32),
    }
    if offload_params and device.type == "cuda":
        options["offload_policy"] = CPUOffloadPolicy()
    model: Any = policy.model
    for block in blocks(model):  # one after the other: no rank holds all weights in float32
        fully_shard(block.float(), **options)
    for weight in model.parameters():
        weight.data = weight.data.float()
    fully_shard(model, **options)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            # A sum, not a mean: the loss is divided by the whole step's tokens already. As a sum also in the
            # communication, for gloo knows no other.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    model.run_whole = MethodType(_run_whole, model)
    register_fsdp_forward_method(model, "run_whole")
    return replace(policy, device=device, compute_dtype=compute_dtype)


def _mesh(device_type: str, num_ranks: int, ranks_a_copy: int | None) -> DeviceMesh:
    """The ranks in a row, or in [groups, ranks of a group]: torchrun numbers a machine's ranks one after the other."""
    if ranks_a_copy in (None, num_ranks):
        return init_device_mesh(device_type, (num_ranks,))
    shape = (num_ranks // ranks_a_copy, ranks_a_copy)
    return init_device_mesh(device_type, shape, mesh_dim_names=("copies", "shards"))


def blocks(model: Any) -> list[Module]:
    """The layers of the text and the vision stack, in the order in which they run."""
    visual = getattr(model.model, "visual", None)
    text = getattr(model.model, "language_model", model.model)
    return [*(visual.blocks if visual is not None else ()), *text.layers]


def _run_whole(model: Module, work: Callable[..., Any], *args: Any) -> Any:
    return work(*args)
