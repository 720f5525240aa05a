"""What a run's settings and the model's config.json say of memory: bytes a GPU holds, phase by phase.

Weights are counted on the meta device, activations on fake tensors through the code that trains; neither weights nor a
GPU are needed. The rest is counted from what the engine allocates; each line says what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from diva_engine.config import Config
from diva_engine.policy.activation_trace import text_layer_bytes, vision_block_bytes
from diva_engine.policy.forward import LOGITS_PER_CHUNK
from diva_engine.policy.model import VISION_MODEL_TYPES
from diva_engine.policy.packing import row_length, split_trees
from diva_engine.records import AnswerTree, Prompt
from diva_engine.rollout.kv_cache import next_capacity
from diva_engine.rollout.prefill import MAX_PREFILL_TOKENS

MOMENTS_BYTES, MASTER_BYTES = 8, 4  # a parameter: two float32 moments; a float32 copy of a bfloat16 weight
# Of every logit while a token is drawn: float32 log-probability and probability, float64 running sum and its input.
SAMPLING_BYTES = 4 + 4 + 8 + 8
TEXT_TOKENS = 64  # of the longest prompt, left for its words


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model, and what one token costs in it."""

    parameters: int
    vision: int
    largest_block: int
    outside_blocks: int  # embeddings, head, patch embedding, merger: FSDP gathers them together
    linear_sides: dict[str, int]  # inputs and outputs of every linear layer but the head, by name
    kv_values: int  # keys and values of one token in all layers
    hidden: int
    vision_hidden: int
    intermediate: int
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class LargestStep:
    """The longest prompt with the largest picture, and the longest answers."""

    prompt_tokens: int
    image_tokens: int
    patches: int
    patch_values: int  # numbers of a patch
    token_side: int  # pixels of an image token
    answers: int  # a prompt
    answer_tokens: int

    def tree(self) -> AnswerTree:
        positions = torch.arange(self.prompt_tokens).expand(3, -1)
        prompt = Prompt(token_ids=(0,) * self.prompt_tokens, position_ids=positions)
        return AnswerTree(prompt, ((0,) * self.answer_tokens,) * self.answers)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU by phase and by what they hold; `always` lies there in every phase, `host` in CPU memory."""

    size: ModelSize
    step: LargestStep
    num_gpus: int
    phases: dict[str, dict[str, int]]
    host: dict[str, int]

    def total(self, phase: str) -> int:
        resident = sum(self.phases["always"].values())
        return resident + (0 if phase == "always" else sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        return max(self.total(phase) for phase in self.phases)


def plan_memory(
    config: Config, model_config: Any, num_gpus: int = 1, *, max_pixels: int = 0, gpu_bytes: int = 0
) -> MemoryPlan:
    """`max_pixels` bounds a picture's area as the model's image processor does; 0 where it has no bound.

    `gpu_bytes` is a GPU's memory, of which vLLM takes its share.
    """
    size = model_size(model_config)
    step = largest_step(config, model_config, max_pixels)
    always, host = _resident(config, size, num_gpus), {}
    state = _state_gradients(config, size, num_gpus)
    moments = {}
    if config.worker.actor.offload.offload_params:
        host, always, state = {**always, **state}, {}, {}
    elif config.worker.actor.offload.offload_optimizer:
        host = moments = {"AdamW moments": always.pop("AdamW moments")}
    always |= _engine_weights(config, size, num_gpus)
    phases = {
        "always": always,
        "rollout": _rollout(config, size, step, gpu_bytes),
        "update": state | _update(config, model_config, size, step, num_gpus),
        # Fused, as on a GPU, AdamW makes no temporaries; on a CPU it takes one tensor at a time.
        "optimizer": state | moments,
    }
    return MemoryPlan(size, step, num_gpus, phases, host)


def model_size(model_config: Any) -> ModelSize:
    has_vision = model_config.model_type in VISION_MODEL_TYPES
    auto_class: Any = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(model_config)
    text = model_config.get_text_config()
    stack = getattr(model.model, "language_model", model.model)
    visual = getattr(model.model, "visual", None)
    blocks = [_count(block) for block in (*(visual.blocks if visual is not None else ()), *stack.layers)]
    return ModelSize(
        parameters=_count(model),
        vision=_count(visual) if visual is not None else 0,
        largest_block=max(blocks),
        outside_blocks=_count(model) - sum(blocks),
        linear_sides={
            name: module.in_features + module.out_features
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head
        },
        kv_values=2 * len(stack.layers) * text.num_key_value_heads * stack.layers[0].self_attn.head_dim,
        hidden=text.hidden_size,
        vision_hidden=visual.blocks[0].norm1.weight.shape[0] if visual is not None else 0,
        intermediate=text.intermediate_size,
        layers=len(stack.layers),
        vocabulary=text.vocab_size,
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def largest_step(config: Config, model_config: Any, max_pixels: int = 0) -> LargestStep:
    """One picture a prompt, as large as the settings and the longest prompt allow."""
    data = config.data
    vision = getattr(model_config, "vision_config", None)
    image_tokens = patches = patch_values = token_side = 0
    if vision is not None:
        merge, side = vision.spatial_merge_size**2, vision.patch_size
        room = max(0, data.max_prompt_length - TEXT_TOKENS)
        limit = data.max_pixels or max_pixels
        image_tokens = min(room, limit // (merge * side**2)) if limit else room
        patches, token_side = image_tokens * merge, side * vision.spatial_merge_size
        patch_values = vision.in_channels * vision.temporal_patch_size * side**2
    return LargestStep(
        prompt_tokens=data.max_prompt_length,
        image_tokens=image_tokens,
        patches=patches,
        patch_values=patch_values,
        token_side=token_side,
        answers=config.worker.rollout.n,
        answer_tokens=data.max_response_length,
    )


def _resident(config: Config, size: ModelSize, num_gpus: int) -> dict[str, int]:
    """Sharded weights are float32 and their own masters; a single bfloat16 process keeps both."""
    trained, is_sharded = _trained(config, size), _is_sharded(config, num_gpus)
    element, shards = _element(config), config.worker.actor.fsdp.ranks_a_copy(num_gpus)
    items = {"weights": size.parameters * (MASTER_BYTES if is_sharded else element) // shards}
    if not is_sharded and element < MASTER_BYTES:
        items["float32 masters"] = trained * MASTER_BYTES
    items["AdamW moments"] = trained * MOMENTS_BYTES // shards
    if not config.algorithm.disable_kl:
        items["reference weights"] = items["weights"]
    return items


def _state_gradients(config: Config, size: ModelSize, num_gpus: int) -> dict[str, int]:
    """In float32, and in a single process once more as the backward pass leaves them."""
    trained, element = _trained(config, size), _element(config)
    items = {"gradients": trained * MASTER_BYTES // config.worker.actor.fsdp.ranks_a_copy(num_gpus)}
    if not _is_sharded(config, num_gpus) and element < MASTER_BYTES:
        items["gradients in bfloat16"] = trained * element
    return items


def _engine_weights(config: Config, size: ModelSize, num_gpus: int) -> dict[str, int]:
    """The native engine reads the policy's own weights where they are whole and without adapters, else a copy."""
    has_copy = _is_sharded(config, num_gpus) or config.worker.actor.model.lora.rank
    if config.worker.rollout.engine != "native" or not has_copy:
        return {}
    return {"the native engine's weights": size.parameters * _element(config)}


def _rollout(config: Config, size: ModelSize, step: LargestStep, gpu_bytes: int) -> dict[str, int]:
    """The native engine with `max_batch_rows` answers side by side; vLLM with its own weights and what it is given."""
    rollout, element = config.worker.rollout, _element(config)
    if rollout.engine == "vllm":
        weights = size.parameters * element // rollout.tensor_parallel_size
        share = int(rollout.gpu_memory_utilization * gpu_bytes)
        cache = rollout.kv_cache_memory_bytes or max(0, share - weights)
        return {"vLLM weights": weights, "vLLM KV cache": cache}
    rows = rollout_rows(config, step)
    prompts = -(-rows // step.answers)
    prefilled = min(prompts, max(1, MAX_PREFILL_TOKENS // (step.prompt_tokens + step.patches)))
    return {
        "KV cache of prompts": prompts * step.prompt_tokens * size.kv_values * element,
        "KV cache of answers": rows * _cached_places(step.answer_tokens) * size.kv_values * element,
        "reading prompts": prefilled * step.prompt_tokens * (4 * size.intermediate + 6 * size.hidden) * element,
        "pictures": _image_bytes(step, prefilled) + prefilled * step.patches * 10 * size.vision_hidden * element,
        "logits and sampling": rows * size.vocabulary * (element + SAMPLING_BYTES),
    }


def rollout_rows(config: Config, step: LargestStep) -> int:
    """Answers decoded side by side, whole groups of them."""
    rows = min(config.worker.rollout.max_batch_rows, config.data.rollout_batch_size * step.answers)
    return max(1, rows // step.answers) * step.answers


def _cached_places(answer_tokens: int) -> int:
    """Most places of an answer: while the cache grows, old and new are there together."""
    capacity = most = next_capacity(0)
    while capacity < answer_tokens:
        grown = next_capacity(capacity)
        most = capacity + grown
        capacity = grown
    return most


def _update(config: Config, model_config: Any, size: ModelSize, step: LargestStep, num_gpus: int) -> dict[str, int]:
    element, recomputes = _element(config), config.worker.actor.model.enable_gradient_checkpointing
    trees = largest_micro_batch(config, step)
    row = sum(row_length(tree) for tree in trees)
    targets = sum(sum(tree.sequence_lengths) for tree in trees)
    layer = text_layer_bytes(model_config, trees, _dtype(config))
    inputs = size.layers * row * size.hidden * element
    items = {
        "activations": layer + inputs if recomputes else size.layers * layer,
        "their gradients": row * (3 * size.intermediate + 4 * size.hidden) * element,
        "logits": min(LOGITS_PER_CHUNK, targets * size.vocabulary) * element * 2,
        **_gathered(config, size, num_gpus),
    }
    if step.patches:
        items["pictures"] = _image_bytes(step, len(trees))
        if not config.worker.actor.model.freeze_vision_tower:
            block = vision_block_bytes(model_config, step.patches, len(trees), _dtype(config))
            depth = model_config.vision_config.depth
            inputs = depth * len(trees) * step.patches * size.vision_hidden * element
            items["vision activations"] = block + inputs if recomputes else depth * block
    return items


def largest_micro_batch(config: Config, step: LargestStep) -> list[AnswerTree]:
    """As many of the longest trees as fit into a row; of a tree longer than that, its largest part."""
    budget = config.worker.actor.micro_batch_tokens
    part = split_trees([step.tree()], budget)[0]
    return [part] * max(1, budget // row_length(part))


def _gathered(config: Config, size: ModelSize, num_gpus: int) -> dict[str, int]:
    """FSDP2: what lies outside of the blocks, the block that computes and the next one, whole."""
    if not _is_sharded(config, num_gpus):
        return {}
    return {"gathered weights": (size.outside_blocks + 2 * size.largest_block) * _element(config)}


def _image_bytes(step: LargestStep, num_images: int) -> int:
    """float32 pixels of the prompts and their copy laid end to end."""
    return 2 * num_images * step.patches * step.patch_values * 4


def _is_sharded(config: Config, num_gpus: int) -> bool:
    return num_gpus > 1 or config.worker.actor.offload.offload_params


def _trained(config: Config, size: ModelSize) -> int:
    """Parameters, or those of the adapters."""
    model = config.worker.actor.model
    if model.lora.rank:
        return model.lora.rank * sum(
            sides
            for name, sides in size.linear_sides.items()
            if (model.lora.target_modules == ["all-linear"] or name.split(".")[-1] in model.lora.target_modules)
            and not (model.freeze_vision_tower and ".visual." in name)
        )
    return size.parameters - (size.vision if config.worker.actor.model.freeze_vision_tower else 0)


def _dtype(config: Config) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, config.worker.actor.model.torch_dtype)
    return dtype


def _element(config: Config) -> int:
    return _dtype(config).itemsize
