"""AdamW's moments in host memory between optimizer steps, on their parameters' device while AdamW moves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diva_engine.trainer.optimizer_state import MOMENTS


class HostMoments:
    """Keeps the moments of `optimizer`'s parameters in host memory, pinned where the device is a GPU.

    A share of a sharded parameter keeps its share of the moments: nothing is sent. Every value is copied as it is, so
    that steps come out bit for bit as without. The host memory is taken once and used again.
    """

    def __init__(self, optimizer: torch.optim.AdamW) -> None:
        self._optimizer = optimizer
        self._host: dict[Tensor, dict[str, Tensor]] = {}  # as in the optimizer's state: by parameter, by name

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """For an optimizer step: the moments are on their parameters' device while the block runs."""
        for parameter, state in self._optimizer.state.items():
            for moment in MOMENTS:
                state[moment] = state[moment].to(parameter.device, non_blocking=True, copy=True)
        try:
            yield
        finally:
            self.put_away()

    @torch.no_grad()
    def put_away(self) -> None:
        """Moves the moments to host memory; when it returns, they can be read there."""
        for parameter, state in self._optimizer.state.items():
            own = self._host.setdefault(parameter, {})
            for moment in MOMENTS:
                value = state[moment]
                if moment not in own:
                    own[moment] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                if own[moment] is not value:
                    state[moment] = own[moment].copy_(value, non_blocking=True)
        for device in {parameter.device for parameter in self._host if parameter.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # the copies are under way until then
