"""What the optimizer moves and remembers, by the parameters' names: the part of a checkpoint that is sharded as they
are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diva_engine.records import UserError
from diva_engine.trainer.master_weights import MasterWeights

MOMENTS = ("exp_avg", "exp_avg_sq")


class OptimizerState:
    """The float32 masters and AdamW's moments. A parameter that has had no gradient yet has no moments."""

    def __init__(self, names: Sequence[str], optimizer: torch.optim.AdamW, weights: MasterWeights) -> None:
        self._optimizer, self._weights = optimizer, weights
        self._masters = dict(zip(names, weights.masters, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Masters and moments as they are, not copied."""
        found = {f"master/{name}": master.detach() for name, master in self._masters.items()}
        for name, state in self._states().items():
            found.update({f"{moment}/{name}": state[moment] for moment in MOMENTS})
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the parameters' names, and how often each has moved."""
        steps = {name: float(state["step"]) for name, state in self._states().items()}
        return {"parameters": list(self._masters), "steps": steps}

    @torch.no_grad()
    def load(self, saved: Mapping[str, Any], read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Takes back what `state_dict` and `tensors` gave; `read` fills tensors in place by their names.

        Learning rate, betas and weight decay stay the settings'. Raises UserError where the checkpoint trained other
        parameters.
        """
        others = set(saved["parameters"]) ^ set(self._masters)
        if others:
            raise UserError(
                f"the checkpoint's optimizer is of other parameters ({len(others)} differ, {min(others)} first); "
                "restore worker.actor.model.freeze_vision_tower or start anew"
            )
        blank = {
            i: {"step": torch.tensor(saved["steps"][name]), **{m: torch.zeros_like(master) for m in MOMENTS}}
            for i, (name, master) in enumerate(self._masters.items())
            if name in saved["steps"]
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": blank, "param_groups": groups})
        read(self.tensors())
        self._weights.write_back()

    def _states(self) -> dict[str, dict[str, Tensor]]:
        found = {name: self._optimizer.state.get(master) for name, master in self._masters.items()}
        return {name: state for name, state in found.items() if state}
