"""One library at a time, imported and used in a process of its own: it may crash, hang or exit there.

    python -m diva_engine.doctor.probes NAME

The last line of stdout is a JSON object; a library that cannot be imported ends the process with its own error.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any


def probe_torch() -> dict[str, Any]:
    import torch

    assert torch.ones(8, 8).matmul(torch.ones(8, 8)).sum().item() == 512.0
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        product = torch.ones(64, 64, device=f"cuda:{index}").matmul(torch.ones(64, 64, device=f"cuda:{index}"))
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": properties.major * 10 + properties.minor,
                "free_gib": free / 2**30,
                "total_gib": total / 2**30,
                "is_right": product.sum().item() == 64.0**3,
            }
        )
    return {"version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "gpus": gpus}


def probe_ops() -> dict[str, Any]:
    import torch

    import diva_engine
    from diva_engine import ops

    info = dict(diva_engine.build_info())
    compiled_at_run_time = ops.library.COMPILED_AT_RUN_TIME is not None
    has_kernels = info["cuda"] or compiled_at_run_time
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() and has_kernels else [])
    for device in devices:
        rewards, offsets = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 2, 4])
        means = ops.group_stats(rewards.to(device), offsets.to(device)).mean.tolist()
        assert means == [0.5, 1.0], f"group_stats gives {means} on {device}"
    return info | {"devices": devices, "compiled_at_run_time": compiled_at_run_time}


def probe_transformers() -> dict[str, Any]:
    import transformers

    assert transformers.Qwen2_5_VLForConditionalGeneration is not None
    assert transformers.Qwen2VLImageProcessor is not None
    return {"version": transformers.__version__}


def probe_torchvision() -> dict[str, Any]:
    import torchvision

    from diva_engine import torchvision_on_cpu

    return {"version": torchvision.__version__, "is_shimmed": bool(torchvision_on_cpu._declared)}


def probe_vllm() -> dict[str, Any]:
    vllm = importlib.import_module("vllm")  # by its name alone: the engine's file is the one that imports it
    return {"version": vllm.__version__, "has_engine": vllm.LLMEngine is not None}


def probe_flash_attn() -> dict[str, Any]:
    import flash_attn

    return {"version": flash_attn.__version__, "has_kernels": flash_attn.flash_attn_varlen_func is not None}


def probe_math_verify() -> dict[str, Any]:
    from math_verify import parse, verify

    assert verify(parse("\\boxed{2\\sqrt{3}}"), parse("\\boxed{\\sqrt{12}}"))
    return {}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": probe_torch,
    "ops": probe_ops,
    "transformers": probe_transformers,
    "torchvision": probe_torchvision,
    "vllm": probe_vllm,
    "flash_attn": probe_flash_attn,
    "math_verify": probe_math_verify,
}


if __name__ == "__main__":
    found = PROBES[sys.argv[1]]()
    print("\n" + json.dumps(found), flush=True)
