"""Tiny random checkpoints of every supported model family, built offline as ordinary Hugging Face folders.

The tokenizer is byte-level without merges: any text is encodable, one token a byte, special tokens after the bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diva_engine  # isort: skip  # noqa: F401 - before transformers: it lets torchvision be imported beside a CPU torch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

VISION_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TEXT_FAMILIES = ("qwen2", "qwen3", "llama")
FAMILIES = VISION_FAMILIES + TEXT_FAMILIES

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 + 8 tokens with Qwen's special tokens and chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def build_tiny_model(
    family: str,
    folder: str | Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    vision_size: int = 32,
    vocab_size: int | None = None,
    intermediate_size: int | None = None,
    max_image_tokens: int = 64,
) -> Path:
    """Write a random checkpoint of `family` (one of FAMILIES) with tokenizer and image processor; returns its folder.

    Weights are drawn wider than transformers' own initialisation, so that the logits are far from flat.
    """
    folder = Path(folder)
    tokenizer = build_tiny_tokenizer()
    text = _text_settings(tokenizer, hidden_size, num_layers, vocab_size or len(tokenizer))
    text["intermediate_size"] = intermediate_size or 2 * hidden_size
    torch.manual_seed(seed)
    model = _BUILDERS[family](tokenizer, text, vision_size).to(torch.float32)
    _draw_weights(model)
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family in VISION_FAMILIES:
        _image_processor(family, max_image_tokens).save_pretrained(folder)
    return folder


def _draw_weights(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(1, 0.1)


def _text_settings(tokenizer: Any, hidden_size: int, num_layers: int, vocab_size: int) -> dict[str, Any]:
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
    }


def _mrope_section(head_dim: int) -> list[int]:
    half = head_dim // 2
    spatial = half * 3 // 8
    return [half - 2 * spatial, spatial, spatial]


def _vision_ids(tokenizer: Any) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))


def _qwen2_vl(tokenizer: Any, text: dict[str, Any], vision_size: int) -> PreTrainedModel:
    section = _mrope_section(text["hidden_size"] // text["num_attention_heads"])
    text = dict(text, rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": section})
    vision = {"depth": 2, "embed_dim": vision_size, "hidden_size": text["hidden_size"], "num_heads": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **_vision_ids(tokenizer))
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl(tokenizer: Any, text: dict[str, Any], vision_size: int) -> PreTrainedModel:
    section = _mrope_section(text["hidden_size"] // text["num_attention_heads"])
    text = dict(text, rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": section})
    vision = {
        "depth": 2,
        "hidden_size": vision_size,
        "num_heads": 4,
        "intermediate_size": 2 * vision_size,
        "out_hidden_size": text["hidden_size"],
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **_vision_ids(tokenizer)
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(tokenizer: Any, text: dict[str, Any], vision_size: int) -> PreTrainedModel:
    head_dim = text["hidden_size"] // 2  # not hidden_size / heads: the two differ in the published models too
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": _mrope_section(head_dim),
        "mrope_interleaved": True,
    }
    text = dict(text, head_dim=head_dim, rope_parameters=rope)
    vision = {
        "depth": 2,
        "hidden_size": vision_size,
        "num_heads": 4,
        "intermediate_size": 2 * vision_size,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **_vision_ids(tokenizer))
    return Qwen3VLForConditionalGeneration(config)


def _text_builder(config_class: Any, model_class: Any) -> Any:
    return lambda tokenizer, text, vision_size: model_class(config_class(**text))


def _qwen3(tokenizer: Any, text: dict[str, Any], vision_size: int) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**text, head_dim=text["hidden_size"] // 2))


_BUILDERS = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen2": _text_builder(Qwen2Config, Qwen2ForCausalLM),
    "qwen3": _qwen3,
    "llama": _text_builder(LlamaConfig, LlamaForCausalLM),
}


def _image_processor(family: str, max_image_tokens: int) -> Qwen2VLImageProcessor:
    patch = 16 if family == "qwen3_vl" else 14
    tile = (2 * patch) ** 2  # pixels of one image token
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if family == "qwen3_vl" else {}
    return Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": 4 * tile, "longest_edge": max_image_tokens * tile}, **normal
    )
