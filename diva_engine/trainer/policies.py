"""Policies of a run: opened by the settings, on the device of this rank, whole or as its share."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from diva_engine.config import Config
from diva_engine.distributed import current_world, is_launched, local_rank
from diva_engine.policy.attention import refuse_untrainable_attention
from diva_engine.policy.lora import add_adapters
from diva_engine.policy.model import Policy, load_policy
from diva_engine.policy.sharding import shard_policy
from diva_engine.records import UserError
from diva_engine.seeds import derive_seed


def open_policy(config: Config, checkpoint: Path | None = None) -> Policy:
    """The policy to train: the model of the settings, or, resuming, of the checkpoint, with adapters where they are
    trained.

    Its weights are cut over the ranks where there are several, or where they are to lie in CPU memory. The adapters of
    a checkpoint come with the rest of its state.
    """
    lora = config.worker.actor.model.lora
    policy = load_whole_policy(config, None if lora.rank else checkpoint, device=_loading_device(config))
    if lora.rank:
        seed = derive_seed(config.data.seed, "adapters")
        policy = add_adapters(policy, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, seed=seed)
    return _sharded(config, policy)


def open_reference(config: Config) -> Policy:
    """The starting weights, whatever checkpoint the policy came from. They are never trained."""
    policy = load_whole_policy(config, device=_loading_device(config))
    policy.model.requires_grad_(False)
    return _sharded(config, policy)


def _is_cut(config: Config) -> bool:
    """Not by whether a process group exists: a vLLM engine makes one where there is none."""
    is_offloaded = config.worker.actor.offload.offload_params and find_device(config.trainer.device) != "cpu"
    return current_world().size > 1 or is_offloaded


def _loading_device(config: Config) -> str:
    """A policy that is to be cut is whole on the CPU only."""
    return "cpu" if _is_cut(config) else find_device(config.trainer.device)


def _sharded(config: Config, policy: Policy) -> Policy:
    """The policy's share of this rank, where it is cut; else the policy."""
    actor = config.worker.actor
    if not _is_cut(config):
        return policy
    return shard_policy(
        policy,
        device=torch.device(find_device(config.trainer.device)),
        compute_dtype=getattr(torch, actor.model.torch_dtype),
        ranks_a_copy=actor.fsdp.ranks_a_copy(current_world().size),
        offload_params=actor.offload.offload_params,
    )


def load_whole_policy(config: Config, checkpoint: Path | None = None, *, device: str | None = None) -> Policy:
    """Every weight on this rank, on its device where none is given."""
    model = config.worker.actor.model
    if not (checkpoint or model.model_path):
        raise UserError("worker.actor.model.model_path is empty; give a Hugging Face folder or hub name (model=...)")
    refuse_untrainable(config)
    return load_policy(
        checkpoint / "policy" if checkpoint else model.model_path,
        dtype=model.torch_dtype,
        device=device or find_device(config.trainer.device),
        attn_implementation=model.attn_implementation,
        trust_remote_code=model.trust_remote_code,
        freeze_vision_tower=model.freeze_vision_tower,
        enable_gradient_checkpointing=model.enable_gradient_checkpointing,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )


def refuse_untrainable(config: Config) -> None:
    """Raises UserError where the settings ask for an attention that cannot train in their type on their device."""
    model = config.worker.actor.model
    device = torch.device(find_device(config.trainer.device))
    refuse_untrainable_attention(model.attn_implementation, device, getattr(torch, model.torch_dtype))


def find_device(name: str) -> str:
    """`auto` is the first GPU where torch sees one, else the CPU; under torchrun each process has a GPU of its own."""
    num_gpus = torch.cuda.device_count()
    if name in ("auto", "cuda") and num_gpus and is_launched():
        name = f"cuda:{local_rank()}"
    if name == "auto":
        return "cuda" if num_gpus else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"trainer.device={name} is no device; take auto, cpu, cuda or cuda:N")
    if name != "cpu" and not num_gpus:
        raise UserError(f"trainer.device={name}, but this torch sees no GPU; take trainer.device=cpu")
    if int(match[1] or 0) >= max(1, num_gpus):
        raise UserError(f"trainer.device={name}, but this torch sees {num_gpus} GPUs, counted from 0")
    return name
