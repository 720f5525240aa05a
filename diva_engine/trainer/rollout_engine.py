"""The rollout engine of the settings, ready to generate with the policy's weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from diva_engine.config import Config
from diva_engine.policy.model import Policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import RolloutEngine, UserError
from diva_engine.rollout.native_engine import NativeEngine


def build_engine(config: Config, policy: Policy, whole_model: Callable[[], PreTrainedModel]) -> RolloutEngine:
    """Over sharded weights a collective call: the engine is handed them here for the first time.

    `whole_model` opens a copy of the model for an engine that cannot read the policy's own weights.
    """
    rollout = config.worker.rollout
    if rollout.engine == "native":
        if rollout.tensor_parallel_size > 1:
            raise UserError("worker.rollout.tensor_parallel_size above 1 needs worker.rollout.engine=vllm")
        if policy.holds_weights:
            return NativeEngine(policy.model, policy.processor, max_batch_rows=rollout.max_batch_rows)
        engine = NativeEngine(whole_model(), policy.processor, max_batch_rows=rollout.max_batch_rows, owns_weights=True)
        engine.update_weights(0, full_weights(policy))
        return engine
    try:
        from diva_engine.rollout.vllm_engine import EngineModel, VllmEngine
    except ModuleNotFoundError as error:
        raise UserError(
            f"worker.rollout.engine=vllm, but {error.name} is not installed: pip install 'diva-engine[vllm]' on a "
            "GPU, `make vllm` in the source tree on a CPU (docs/rollout.md)"
        ) from None
    model = config.worker.actor.model
    with tempfile.TemporaryDirectory() as folder:  # the one it was loaded from may be gone: an older checkpoint
        policy.save_side_files(folder)
        engine = VllmEngine(
            EngineModel(
                folder=Path(folder),
                dtype=model.torch_dtype,
                device=policy.device,
                max_model_len=rollout.max_model_len or default_length(config, policy),
                trust_remote_code=model.trust_remote_code,
            ),
            policy.processor,
            rollout,
        )
    engine.update_weights(0, full_weights(policy))
    return engine


def default_length(config: Config, policy: Policy) -> int:
    """Room for a prompt, an answer, and a forced beginning as long as an answer; no more than the model has."""
    wanted = config.data.max_prompt_length + 2 * config.data.max_response_length
    return min(wanted, policy.model.config.get_text_config().max_position_embeddings)
