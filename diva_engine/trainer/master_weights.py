"""Float32 masters of weights that are kept in fewer bits: what the optimizer moves.

A bfloat16 weight of 0.02 has neighbours 1e-4 away: a step of 1e-6 would be rounded away, at every step anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter


class MasterWeights:
    """The parameters and their masters; a float32 parameter is its own, and costs nothing here."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._parameters = list(parameters)
        self.masters: list[Tensor] = [
            p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in self._parameters
        ]
        self._pairs = [(p, m) for p, m in zip(self._parameters, self.masters, strict=True) if m is not p]

    def take_gradients(self) -> None:
        """Adds the parameters' gradients to their masters', in float32, and clears them."""
        for parameter, master in self._pairs:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def clear_gradients(self) -> None:
        """Forgets every gradient, those of a backward pass that broke off included."""
        for weight in (*self._parameters, *self.masters):
            weight.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Rounds the masters into their parameters."""
        for parameter, master in self._pairs:
            parameter.copy_(master)
