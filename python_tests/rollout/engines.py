"""Rollout engines and prompts for tests, each made once a process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_engine.config import RolloutConfig
from diva_engine.policy.model import Policy, load_policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import Prompt, RolloutEngine
from diva_engine.rollout.native_engine import NativeEngine
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image

ENGINES = ["native", pytest.param("vllm", marks=pytest.mark.vllm)]
MAX_MODEL_LEN = 1024

# A vLLM engine that is collected takes with it the process groups of all others.
_KEPT: list[RolloutEngine] = []


@functools.cache
def tiny_policy(family: str) -> Policy:
    return load_policy(tiny_folder(family))


@functools.cache
def tiny_folder(family: str) -> Path:
    """Heads of 32 numbers at least: vLLM's CPU attention has none smaller."""
    return build_tiny_model(family, tempfile.mkdtemp(), num_layers=3, hidden_size=128)


def open_engine(kind: str, policy: Policy, processor: Any = None, **settings: Any) -> RolloutEngine:
    """An engine with the policy's weights."""
    processor = processor or policy.processor
    if kind == "native":
        return NativeEngine(policy.model, processor)
    from diva_engine.rollout.vllm_engine import EngineModel, VllmEngine

    dtype = str(policy.model.dtype).removeprefix("torch.")
    settings = {"max_batch_rows": 64, "kv_cache_memory_bytes": 64 * 2**20, **settings}
    with tempfile.TemporaryDirectory() as folder:
        policy.save_side_files(folder)
        model = EngineModel(Path(folder), dtype, torch.device("cpu"), MAX_MODEL_LEN)
        engine = VllmEngine(model, processor, RolloutConfig(**settings))
    _KEPT.append(engine)
    engine.update_weights(0, full_weights(policy))
    return engine


@functools.cache
def tiny_engine(kind: str, family: str) -> RolloutEngine:
    """The engine of `tiny_policy(family)`, shared by tests that leave both as they are."""
    return open_engine(kind, tiny_policy(family))


def prompts_of(policy: Policy) -> list[Prompt]:
    """Prompts of different lengths: with a picture, with several, without one, with a forced beginning."""
    if policy.processor.image_processor is None:
        pictures = [[], [], []]
    else:
        pictures = [[random_image(84, 84)], [random_image(112, 56, 1), random_image(150, 90, 2)], []]
    texts = ["how many?", "which of them is larger, and why?", "2 + 2"]
    prompts = [make_prompt(policy.model, policy.processor, *case) for case in zip(texts, pictures, strict=True)]
    return [*prompts, make_prompt(policy.model, policy.processor, "count", pictures[0], prefix="<think> one")]
