"""The policy: a Hugging Face model with what turns texts and pictures into its inputs; load and save."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from diva_engine.policy.attention import SHARED_PROMPT_ATTENTION
from diva_engine.policy.patch_embedding import embed_patches_by_product
from diva_engine.records import Processor, UserError

VISION_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TEXT_MODEL_TYPES = ("qwen2", "qwen3", "llama")

# Tokens an answer must never hold, beside those that the model's own configuration names: whoever reads the answer back
# would take them for a picture or for the next speaker's turn.
_PLACEHOLDER_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_TURN_START_TOKENS = ("<|im_start|>", "<|start_header_id|>", "<|begin_of_text|>")
_PLACEHOLDER_SETTINGS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".py")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Policy:
    """The model being trained. Its weights change in place; everything else is fixed."""

    model: PreTrainedModel
    processor: Processor
    folder: Path  # the Hugging Face folder it was loaded from
    pixel_limits: dict[str, int]  # the image processor's limits that were overridden, by their names in `size`

    @property
    def device(self) -> torch.device:
        return self.model.device

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder: safetensors, config, and the source folder's processor files."""
        target = Path(folder)
        with _without_progress_bars():
            self.model.save_pretrained(target)
        for source in sorted(self.folder.iterdir()):
            is_weight_index = source.name.endswith(".index.json")
            if source.suffix in _COPIED_SUFFIXES and not is_weight_index and not (target / source.name).exists():
                shutil.copyfile(source, target / source.name)
        if self.pixel_limits:
            _write_pixel_limits(target, self.pixel_limits)


def load_policy(
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    freeze_vision_tower: bool = False,
    min_pixels: int = 0,
    max_pixels: int = 0,
) -> Policy:
    """Load a Hugging Face folder or hub name: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, or a text model (Qwen2, Qwen3, Llama).

    `min_pixels` and `max_pixels` override the image processor's area limits; 0 leaves them as the folder has them.
    Raises UserError where the folder, the model or a setting cannot be used.
    """
    if attn_implementation != "sdpa":
        raise UserError(f"attn_implementation {attn_implementation!r} does not know shared-prompt packing; use sdpa")
    folder = _find_folder(path)
    config = _read_config(folder, trust_remote_code)
    model = _load_model(folder, config, getattr(torch, dtype), trust_remote_code)
    pixel_limits = {name: limit for name, limit in _size_entries(min_pixels, max_pixels) if limit}
    processor = _load_processor(folder, model, pixel_limits, trust_remote_code)
    if processor.image_processor is not None:
        embed_patches_by_product(model.model.visual)
        model.model.visual.requires_grad_(not freeze_vision_tower)
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return Policy(model, processor, folder, pixel_limits)


def _find_folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(str(path)):
        raise UserError(f"model {path}: no such folder; give a Hugging Face model folder or a hub name (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(path), allow_patterns=["*.safetensors", *(f"*{s}" for s in _COPIED_SUFFIXES)])
        )
    except Exception as error:  # many classes: no network, no such name, gated, interrupted
        reason = _first_line(error)
        raise UserError(f"model {path}: no such folder here, and the hub did not give it ({reason})") from error


def _read_config(folder: Path, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(f"model {folder}: no config.json; give a Hugging Face model folder or a hub name")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # unreadable JSON, unknown model type, remote code
        raise UserError(f"model {folder}: config.json cannot be read ({_first_line(error)})") from error
    supported = VISION_MODEL_TYPES + TEXT_MODEL_TYPES
    if config.model_type not in supported:
        raise UserError(
            f"model {folder}: model type {config.model_type!r} is not supported; use one of {', '.join(supported)}"
        )
    if "sliding_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        raise UserError(f"model {folder}: sliding-window layers are not supported; set use_sliding_window to false")
    return config


def _load_model(folder: Path, config: Any, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    auto_class: Any = AutoModelForImageTextToText if config.model_type in VISION_MODEL_TYPES else AutoModelForCausalLM
    try:
        with _without_progress_bars():
            model, report = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:  # no weight file, truncated file, sizes that differ
        raise UserError(f"model {folder}: weights cannot be loaded ({_first_line(error)})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model {folder}: {len(missing)} weights are missing, {missing[0]} first; the folder is incomplete"
        )
    model.config.get_text_config()._attn_implementation = SHARED_PROMPT_ATTENTION
    return model


def _load_processor(
    folder: Path, model: PreTrainedModel, pixel_limits: dict[str, int], trust_remote_code: bool
) -> Processor:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):  # transformers would make an empty tokenizer
        raise UserError(f"model {folder}: no tokenizer; put tokenizer.json beside config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files
        raise UserError(f"model {folder}: the tokenizer cannot be loaded ({_first_line(error)})") from error
    stop_ids = _stop_ids(model, tokenizer)
    if not stop_ids:
        raise UserError(f"model {folder}: no end-of-answer token; set eos_token_id in generation_config.json")
    processor = Processor(
        tokenizer=tokenizer,
        image_processor=None,
        image_token_id=None,
        merge_size=1,
        banned_ids=_banned_ids(model, tokenizer, stop_ids),
        stop_ids=stop_ids,
    )
    if model.config.model_type in TEXT_MODEL_TYPES:
        return processor
    image_processor = _load_image_processor(folder, pixel_limits, trust_remote_code)
    return replace(
        processor,
        image_processor=image_processor,
        image_token_id=model.config.image_token_id,
        merge_size=image_processor.merge_size,
    )


def _load_image_processor(folder: Path, pixel_limits: dict[str, int], trust_remote_code: bool) -> Any:
    try:
        image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # no preprocessor_config.json, or a broken one
        raise UserError(f"model {folder}: the image processor cannot be loaded ({_first_line(error)})") from error
    for name, limit in pixel_limits.items():
        image_processor.size[name] = limit
    return image_processor


def _stop_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id
    ids = set(configured) if isinstance(configured, list) else {configured}
    return tuple(sorted((ids | {tokenizer.eos_token_id}) - {None}))


def _banned_ids(model: PreTrainedModel, tokenizer: Any, stop_ids: tuple[int, ...]) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    ids = [getattr(model.config, name, None) for name in _PLACEHOLDER_SETTINGS]
    ids += [vocabulary.get(token) for token in _PLACEHOLDER_TOKENS + _TURN_START_TOKENS]
    ids += [tokenizer.pad_token_id, tokenizer.bos_token_id]
    return tuple(sorted({i for i in ids if i is not None and i not in stop_ids}))


def _size_entries(min_pixels: int, max_pixels: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """Transformers keeps area limits, in pixels, under these two names."""
    return ("shortest_edge", min_pixels), ("longest_edge", max_pixels)


def _write_pixel_limits(folder: Path, pixel_limits: dict[str, int]) -> None:
    """Let the saved folder see pictures at the size that was trained, wherever its processor settings lie."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        settings = json.loads(path.read_text(encoding="utf-8"))
        section = settings.get("image_processor", settings if name == "preprocessor_config.json" else None)
        if section is not None:
            section["size"] = {**section.get("size", {}), **pixel_limits}
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers draws bars on stderr for loads and saves, through the trainer's own live table."""
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
