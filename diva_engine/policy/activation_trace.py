"""How many bytes a training forward keeps for its backward, found without weights, data or a GPU.

One layer runs on fake tensors, which have sizes but no memory, and what autograd saves is counted: so the count is of
the code that trains, whatever the model family.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from diva_engine.policy.attention import SHARED_PROMPT_ATTENTION, lay_out_row
from diva_engine.policy.model import VISION_MODEL_TYPES
from diva_engine.policy.packing import pack_trees
from diva_engine.policy.vision_attention import attend_windows_together
from diva_engine.records import AnswerTree


def text_layer_bytes(model_config: Any, trees: Sequence[AnswerTree], dtype: torch.dtype) -> int:
    """Saved by one text layer for a packed row of `trees`, attended by sdpa; other choices save no more."""
    row = pack_trees(trees)
    layout = lay_out_row("sdpa", row.shapes, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        text = _text_model(_shallow_model(model_config, dtype))
        hidden = torch.zeros(1, len(row.token_ids), text.config.hidden_size, dtype=dtype, requires_grad=True)
        positions = row.position_ids[:, None]
        rotations = text.rotary_emb(
            hidden, positions if model_config.model_type in VISION_MODEL_TYPES else positions[0]
        )
        return _saved_bytes(
            lambda: text.layers[0](
                hidden, attention_mask=None, position_embeddings=rotations, packed_layout=layout, use_cache=False
            ),
            _parameters(text),
        )


def vision_block_bytes(model_config: Any, patches_per_image: int, num_images: int, dtype: torch.dtype) -> int:
    """Saved by one block of the vision tower; each image sees itself whole."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        visual = _shallow_model(model_config, dtype).model.visual
        block = visual.blocks[0]
        hidden = torch.zeros(
            patches_per_image * num_images, block.norm1.weight.shape[0], dtype=dtype, requires_grad=True
        )
        angles = torch.zeros(len(hidden), hidden.shape[1] // block.attn.num_heads)
        lengths = _KnownLengths([patches_per_image] * num_images)
        return _saved_bytes(
            lambda: block(hidden, cu_seqlens=lengths, position_embeddings=(angles, angles)), _parameters(visual)
        )


class _KnownLengths:
    """Stands for cu_seqlens: fake tensors hold no numbers to read."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def diff(self) -> _KnownLengths:
        return self

    def tolist(self) -> list[int]:
        return self._lengths


def _shallow_model(model_config: Any, dtype: torch.dtype) -> Any:
    """The model with one layer a stack."""
    shallow = copy.deepcopy(model_config)
    shallow.get_text_config().num_hidden_layers = 1
    if getattr(shallow.get_text_config(), "layer_types", None):
        shallow.get_text_config().layer_types = shallow.get_text_config().layer_types[:1]
    if hasattr(shallow, "vision_config"):
        shallow.vision_config.depth = 1
    has_vision = shallow.model_type in VISION_MODEL_TYPES
    auto_class: Any = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    model = auto_class.from_config(shallow, dtype=dtype, attn_implementation="sdpa")
    model.config.get_text_config()._attn_implementation = SHARED_PROMPT_ATTENTION
    if has_vision:
        attend_windows_together(model.model.visual)
    return model


def _text_model(model: Any) -> Any:
    return getattr(model.model, "language_model", model.model)


def _parameters(module: torch.nn.Module) -> set[int]:
    return {parameter.untyped_storage()._cdata for parameter in module.parameters()}


def _saved_bytes(forward: Callable[[], Any], not_counted: set[int]) -> int:
    """Bytes of the different storages that autograd keeps; weights are counted elsewhere."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in not_counted:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # holding the tensor keeps its address from another
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward()
    del output
    return sum(num_bytes for num_bytes, _ in kept.values())
