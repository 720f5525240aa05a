"""Configurations of published models, by their config.json, without weights."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2_5_VLConfig

# Parameters as the hub counts them, and the text model's sizes.
QWEN2_5_VL = {
    "3B": (3_754_622_976, 2048, 11008, 36, 16, 2, True, 151936),
    "7B": (8_292_166_656, 3584, 18944, 28, 28, 4, False, 152064),
    "32B": (33_452_718_336, 5120, 27648, 64, 40, 8, False, 152064),
}


def qwen2_5_vl_config(size: str) -> Qwen2_5_VLConfig:
    _, hidden, intermediate, layers, heads, kv_heads, is_tied, vocabulary = QWEN2_5_VL[size]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128_000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": is_tied,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3456 if size == "32B" else 3420,
        "out_hidden_size": hidden,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=is_tied)


def write_config(size: str, folder: str | Path) -> Path:
    """A model folder that holds nothing but config.json."""
    qwen2_5_vl_config(size).save_pretrained(folder)
    return Path(folder)
