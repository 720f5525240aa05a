"""Low-rank adapters through peft: W + scale * B A, with A and B trained and W frozen.

Only this file imports peft. Engines and checkpoints never meet an adapter: `policy.weights` gives them the sums, under
the names that the weights have without adapters. `save_adapter` writes the adapters alone, as peft reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_engine.policy.model import Policy
from diva_engine.records import UserError

ALL_LINEAR = "all-linear"
_VISION = r".*visual\..*"


def add_adapters(policy: Policy, *, rank: int, alpha: float, target_modules: Sequence[str], seed: int) -> Policy:
    """The policy with adapters of `rank` in the modules that end in one of the names, or in every linear layer.

    A vision tower that is frozen gets none. They start by changing nothing: B is 0, A is drawn from `seed`.
    Raises UserError where peft is missing or no module has such a name.
    """
    peft = _import_peft()
    model: Any = policy.model
    visual = getattr(model.model, "visual", None)
    is_blind = visual is not None and not any(p.requires_grad for p in visual.parameters())
    is_all = list(target_modules) == [ALL_LINEAR]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=ALL_LINEAR if is_all else list(target_modules),
        exclude_modules=_VISION if is_blind else None,
        base_model_name_or_path=str(policy.folder),
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise UserError(
                f"worker.actor.model.lora.target_modules={list(target_modules)}: {_first_sentence(error)}; give names "
                f"of linear layers, such as q_proj, or {ALL_LINEAR}"
            ) from None
    return replace(policy, lora=config)


def adapters(model: nn.Module) -> dict[str, Any]:
    """The modules that have an adapter, by the name that they have without one."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def save_adapter(folder: Path, config: Any, weights: Mapping[str, Tensor]) -> None:
    """An adapter folder as `peft.PeftModel.from_pretrained` reads it. `weights`: whole, by the policy's names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Targets by their whole names: to peft, names of the policy's text layers alone would mean the vision tower's too.
    targets = {re.sub(r"\.lora_[AB]\..*", "", name) for name in weights}
    replace(config, target_modules=targets, exclude_modules=None, inference_mode=True).save_pretrained(folder)
    named = {f"base_model.model.{name.replace('.default.', '.')}": weight for name, weight in weights.items()}
    save_file({name: weight.contiguous() for name, weight in named.items()}, folder / "adapter_model.safetensors")


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"worker.actor.model.lora.rank needs peft, which cannot be imported ({error}); "
            "pip install 'diva-engine[lora]'"
        ) from None
    return peft


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].rstrip(".")
