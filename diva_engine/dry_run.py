"""`python -m diva_engine.train --dry-run ...`: what a run will need of memory, before it starts.

--gpus N        plan for N GPUs (default 1)
--gpu-memory G  GiB of one GPU (default: this machine's, else 80)
--plan-only     only print the plan; else, for one GPU and where the weights are at hand, a worst-case step is taken too

The plan is made from the settings and the model's config.json alone. The worst-case step has the longest prompts with
the largest pictures and the longest answers, and is printed beside its prediction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.config import Config
from diva_engine.policy.model import read_model_config
from diva_engine.records import UserError
from diva_engine.settings import load_config
from diva_engine.trainer.memory_plan import MemoryPlan, plan_memory
from diva_engine.trainer.worst_step import take_worst_step

GIB = 1 << 30
# What to lower where an item is the largest of its phase.
REMEDIES = {
    "KV cache of answers": "worker.rollout.max_batch_rows",
    "KV cache of prompts": "worker.rollout.max_batch_rows",
    "logits and sampling": "worker.rollout.max_batch_rows",
    "vLLM KV cache": "worker.rollout.gpu_memory_utilization or worker.rollout.kv_cache_memory_bytes",
    "activations": "worker.actor.micro_batch_tokens, or set worker.actor.model.enable_gradient_checkpointing=true",
    "their gradients": "worker.actor.micro_batch_tokens",
    "AdamW moments": "nothing here: take more GPUs, or set worker.actor.offload.offload_params=true",
    "vision activations": "data.max_pixels, or set worker.actor.model.freeze_vision_tower=true",
    "pictures": "data.max_pixels",
}


def dry_run(words: Sequence[str]) -> None:
    """Raises UserError where the settings or the model cannot be used."""
    options, settings = _parse(words)
    config = load_config(settings, recipe_defaults, print)
    model = config.worker.actor.model
    if not model.model_path:
        raise UserError("worker.actor.model.model_path is empty; give a Hugging Face folder or hub name (model=...)")
    folder, model_config = read_model_config(model.model_path, trust_remote_code=model.trust_remote_code)
    gpu_bytes = int(options.gpu_memory * GIB)
    plan = plan_memory(config, model_config, options.gpus, max_pixels=area_limit(folder), gpu_bytes=gpu_bytes)
    print_plan(plan, config)
    print_verdict(plan, gpu_bytes)
    can_offload = torch.cuda.is_available() and not config.worker.actor.offload.offload_params
    if options.plan_only or options.gpus > 1 or (plan.host and not can_offload):
        return
    if not any(folder.glob("*.safetensors")):
        print("the weights are not at hand: no worst-case step is taken")
        return
    print_step(plan, take_worst_step(config, plan.step))


def area_limit(folder: Path) -> int:
    """Pixels of the largest picture that the model's image processor leaves as it is; 0: it has no limit."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return 0
    settings = json.loads(path.read_text(encoding="utf-8"))
    return int(settings.get("size", {}).get("longest_edge") or settings.get("max_pixels") or 0)


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m diva_engine.train --dry-run", description=__doc__)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu-memory", type=float, default=_memory_here() / GIB or 80)
    parser.add_argument("--plan-only", action="store_true")
    return parser.parse_known_args([word for word in words if word != "--dry-run"])


def print_plan(plan: MemoryPlan, config: Config) -> None:
    size, step = plan.size, plan.step
    print(
        f"{size.parameters / 1e9:.2f} billion parameters ({size.vision / 1e9:.2f} of the vision tower), "
        f"{config.worker.actor.model.torch_dtype}; the largest prompt has {step.prompt_tokens} tokens, "
        f"{step.image_tokens} of a picture, and {step.answers} answers of {step.answer_tokens}"
    )
    table = Table(title=f"GiB on each of {plan.num_gpus} GPUs" if plan.num_gpus > 1 else "GiB of one process")
    for heading in ("phase", "what", "GiB"):
        table.add_column(heading, justify="right" if heading == "GiB" else "left")
    for phase, items in plan.phases.items():
        for name, num_bytes in items.items():
            table.add_row(phase, name, _gib(num_bytes))
        table.add_row(phase, "in all", _gib(plan.total(phase)), style="bold", end_section=True)
    for name, num_bytes in plan.host.items():
        table.add_row("CPU memory", name, _gib(num_bytes))
    Console(width=100).print(table)


def print_verdict(plan: MemoryPlan, gpu_bytes: int) -> None:
    """Where the most is needed, whether it fits, and what to lower."""
    phase = max(plan.phases, key=plan.total)
    items = plan.phases[phase] or plan.phases["always"]
    largest = max(items, key=items.__getitem__)
    hint = f"; mostly {largest}: lower {REMEDIES[largest]}" if largest in REMEDIES else ""
    fits = "fits" if plan.peak < 0.95 * gpu_bytes else "does not fit"
    print(f"the most is needed in phase {phase}: {_gib(plan.peak)} GiB, which {fits} {_gib(gpu_bytes)}{hint}")


def print_step(plan: MemoryPlan, measured: dict[str, int]) -> None:
    for phase, num_bytes in measured.items():
        predicted = max(plan.total(phase), plan.total("optimizer") if phase == "update" else 0)
        ratio = predicted / num_bytes
        print(f"worst-case {phase}: {_gib(num_bytes)} GiB measured, {_gib(predicted)} predicted ({ratio:.2f}x)")


def _memory_here() -> int:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g}"
