"""A linear layer; on x86 CPUs in float32 the three products of a large one go through oneDNN.

torch gives them to MKL, which leaves half of an AMD core idle: 100 against 210 GFLOP/s on one thread of an EPYC,
forward and backward alike. Both sum in float32. Of small products MKL is the faster: a call of oneDNN costs 15 to 25 us
before it multiplies.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
# Multiplications from which oneDNN is hardly slower, measured where both gave 90 GFLOP/s; at its 210, fewer would do.
_ONEDNN_MIN_PRODUCT = 7_000_000


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """states [..., K], weight [N, K], bias [N] -> states @ weight.T + bias, [..., N]. Differentiable once."""
    is_large = _HAS_ONEDNN and states.numel() * weight.shape[0] >= _ONEDNN_MIN_PRODUCT
    if not (is_large and _is_plain_float32(states) and _is_plain_float32(weight)):
        return F.linear(states, weight, bias)
    rows = states.reshape(-1, weight.shape[1])
    # Without a gradient to compute, the Python around the function is time lost.
    product = _OneDnnLinear.apply(rows, weight, bias) if torch.is_grad_enabled() else _product(rows, weight, bias)
    return product.view(*states.shape[:-1], len(weight))


def linear_reference(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition."""
    product = states @ weight.T
    return product if bias is None else product + bias


def _is_plain_float32(tensor: Tensor) -> bool:
    """Neither sharded nor on another device."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [M, K], right [N, K] -> left @ right.T + bias."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = context.saved_tensors
        of_rows, of_weight, of_bias = context.needs_input_grad
        return (
            _product(gradient, weight.T) if of_rows else None,
            _product(gradient.T, rows.T) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )
