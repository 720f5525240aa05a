"""The policy's weights as other programs know them: whole tensors under their Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from diva_engine.policy.lora import adapters
from diva_engine.policy.model import Policy

_BASE = ".base_layer."  # stands in the name of a weight that has an adapter
_ADAPTER = ".lora_"


@torch.no_grad()
def full_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor, in the compute type, of every weight, one at a time, in one fixed order.

    Where adapters are trained, they are added to the weights that they belong to. Over sharded weights this is a
    collective: every rank must take all of them, in step.
    """
    adapted = (
        {} if policy.lora is None else {f"{name}.weight": module for name, module in adapters(policy.model).items()}
    )
    for name, weight in policy.model.state_dict().items():
        if _ADAPTER in name:
            continue
        plain = name.replace(_BASE, ".")
        if plain in adapted:
            weight = whole(weight).float() + _delta(adapted[plain])
        yield plain, whole(weight.to(policy.compute_dtype) if weight.is_floating_point() else weight)


@torch.no_grad()
def adapter_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of every adapter's weights, float32. Over sharded weights a collective call."""
    for name, weight in policy.model.state_dict().items():
        if _ADAPTER in name:
            yield name, whole(weight.float())


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or, of a share, the whole on the device where this rank computes: a collective call."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    return tensor.to(tensor.device_mesh.device_type).full_tensor()


def _delta(module: Any) -> Tensor:
    """scale * B A, float32, [out, in]"""
    (name,) = module.lora_A
    up, down = (whole(part[name].weight).float() for part in (module.lora_B, module.lora_A))
    return module.scaling[name] * (up @ down)
