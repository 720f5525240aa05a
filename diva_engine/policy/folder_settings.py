"""What a saved model folder's JSON files must say beyond what transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def write_dtype(path: Path, dtype: torch.dtype) -> None:
    """The type that the weights are written in; of a share, the modules' own is float32."""

    def changed(settings: dict[str, Any]) -> dict[str, Any]:
        inner = {name: changed(value) if isinstance(value, dict) else value for name, value in settings.items()}
        return inner | ({"dtype": str(dtype).removeprefix("torch.")} if "dtype" in inner else {})

    settings = changed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_pixel_limits(folder: Path, pixel_limits: dict[str, int]) -> None:
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
