"""The policy: a Hugging Face model with what turns texts and pictures into its inputs; load and save."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from diva_engine.policy.attention import SHARED_PROMPT_ATTENTION, refuse_unknown_attention
from diva_engine.policy.cpu_products import use_fast_products
from diva_engine.policy.folder_settings import write_dtype, write_pixel_limits
from diva_engine.policy.patch_embedding import embed_patches_by_product
from diva_engine.policy.progress_bars import without_progress_bars
from diva_engine.policy.recompute import recompute_activations
from diva_engine.policy.vision_attention import attend_windows_together
from diva_engine.records import Processor, UserError

T = TypeVar("T")

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
    side_files: dict[str, bytes]  # what lay beside the weights it was loaded from (tokenizer, templates), by name
    device: torch.device  # where it computes
    compute_dtype: torch.dtype
    attn_implementation: str = "sdpa"  # how the packed training forward attends: a choice of `policy.attention`
    lora: Any = None  # peft's configuration, where adapters are trained in place of the weights

    @property
    def holds_weights(self) -> bool:
        """Whether the modules hold the policy's whole weights as others know them."""
        return not self.is_sharded and self.lora is None

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a share of the weights only: then a forward is a collective call."""
        return isinstance(self.model, FSDPModule)

    def run(self, work: Callable[..., T], *args: Any) -> T:
        """work(*args), which calls modules of the model, while the weights that belong to no block are whole."""
        if not self.is_sharded:
            return work(*args)
        result: T = self.model.run_whole(work, *args)
        if not torch.is_grad_enabled():
            self.model.reshard()  # no backward will
        return result

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face folder: safetensors, config, and the source folder's processor files.

        `weights` are written in place of the model's own: whole tensors by its names, as `policy.weights` yields them.
        """
        target = Path(folder)
        with without_progress_bars():
            self.model.save_pretrained(target, state_dict=None if weights is None else self._without_tied(weights))
        write_dtype(target / "config.json", self.compute_dtype)
        self.save_side_files(target)

    def save_side_files(self, folder: str | Path) -> None:
        """Write what lay beside the weights, config.json included, where the folder has no such file yet."""
        target = Path(folder)
        for name, content in self.side_files.items():
            if not (target / name).exists():
                (target / name).write_bytes(content)
        if self.pixel_limits:
            write_pixel_limits(target, self.pixel_limits)

    def _without_tied(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of tied weights no longer share memory, so that transformers could not tell them by it."""
        return {name: weight for name, weight in weights.items() if name not in self.model.all_tied_weights_keys}


def load_policy(
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    freeze_vision_tower: bool = False,
    enable_gradient_checkpointing: bool = False,
    min_pixels: int = 0,
    max_pixels: int = 0,
) -> Policy:
    """Load a Hugging Face folder or hub name: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, or a text model (Qwen2, Qwen3, Llama).

    `enable_gradient_checkpointing` lets the backward pass compute the activations of each layer again.
    `attn_implementation`: sdpa, flash_attention_2 or flex, of the packed forward (`policy.attention`). On the CPU the
    second runs as its slow definition and the third without gradients; `trainer.policies` refuses to train so.
    `min_pixels` and `max_pixels` override the image processor's area limits; 0 leaves them as the folder has them.
    Raises UserError where the folder, the model or a setting cannot be used.
    """
    refuse_unknown_attention(attn_implementation)
    folder = _find_folder(path)
    config = _read_config(folder, trust_remote_code)
    model = _load_model(folder, config, getattr(torch, dtype), trust_remote_code)
    pixel_limits = {name: limit for name, limit in _size_entries(min_pixels, max_pixels) if limit}
    processor = _load_processor(folder, model, pixel_limits, trust_remote_code)
    if processor.image_processor is not None:
        embed_patches_by_product(model.model.visual)
        attend_windows_together(model.model.visual, is_varlen=attn_implementation == "flash_attention_2")
        model.model.visual.requires_grad_(not freeze_vision_tower)
    use_fast_products(model)
    if enable_gradient_checkpointing:
        recompute_activations(model)
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return Policy(
        model,
        processor,
        folder,
        pixel_limits,
        _read_side_files(folder),
        torch.device(device),
        getattr(torch, dtype),
        attn_implementation,
    )


def _read_side_files(folder: Path) -> dict[str, bytes]:
    """Kept in memory: a run saves long after the checkpoint that it went on from has been dropped."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix in _COPIED_SUFFIXES and path.is_file()]
    return {path.name: path.read_bytes() for path in found if not path.name.endswith(".index.json")}


def load_processor(
    path: str | Path, *, trust_remote_code: bool = False, min_pixels: int = 0, max_pixels: int = 0
) -> Processor:
    """The processor that `load_policy` gives the policy, without reading a weight."""
    folder = _find_folder(path)
    config = _read_config(folder, trust_remote_code)
    auto_class: Any = AutoModelForImageTextToText if config.model_type in VISION_MODEL_TYPES else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    pixel_limits = {name: limit for name, limit in _size_entries(min_pixels, max_pixels) if limit}
    return _load_processor(folder, model, pixel_limits, trust_remote_code)


def read_model_config(path: str | Path, *, trust_remote_code: bool = False) -> tuple[Path, Any]:
    """Folder and configuration of a model whose weights need not be at hand. Raises UserError as `load_policy` does."""
    folder = _find_folder(path, with_weights=False)
    return folder, _read_config(folder, trust_remote_code)


def _find_folder(path: str | Path, *, with_weights: bool = True) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(str(path)):
        raise UserError(f"model {path}: no such folder; give a Hugging Face model folder or a hub name (owner/name)")
    from huggingface_hub import snapshot_download

    wanted = [*(["*.safetensors"] if with_weights else []), *(f"*{suffix}" for suffix in _COPIED_SUFFIXES)]
    try:
        return Path(snapshot_download(str(path), allow_patterns=wanted))
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
        with without_progress_bars():
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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
