"""Activations computed again in the backward pass, layer by layer."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep a layer's input only, of its activations; the backward pass runs the layer once more."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        # Transformers recomputes in training mode only. The layers alone are put into it: no dropout follows.
        module.training = isinstance(module, GradientCheckpointingLayer)
