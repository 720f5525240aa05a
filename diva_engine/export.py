"""Takes the model out of a checkpoint, as a Hugging Face folder that transformers and vLLM load.

    python -m diva_engine.export --checkpoint runs/diva_seed1/checkpoints/global_step_60 --output my_model

A run that trained adapters (LoRA) gives them alone, as peft and vLLM load them beside the base model; --merge-lora
gives the whole model with the adapters added. --checkpoint may name a run's folder: then it is the newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from diva_engine.records import UserError
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.checkpoint_files import PARTIAL, DamageError, check


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a global_step_N folder, or a run's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to be made")
    parser.add_argument("--merge-lora", action="store_true", help="of adapters: the whole model, they added")
    options = parser.parse_args(arguments)
    try:
        print(export(options.checkpoint, options.output, merge_lora=options.merge_lora))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def export(checkpoint: Path, output: Path, *, merge_lora: bool = False) -> str:
    """Makes `output`, whole or not at all; returns what it holds, in words.

    Raises UserError where the checkpoint is none or damaged, or the output is there already.
    """
    checkpoint = find(checkpoint)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UserError(f"--output {output} is there already; name a folder to be made")
    has_adapters = (checkpoint / "adapter").is_dir()
    if merge_lora and not has_adapters:
        raise UserError(f"--merge-lora: {checkpoint} holds no adapters; leave the option out")
    is_adapter = has_adapters and not merge_lora
    _copy(checkpoint, output, is_adapter=is_adapter)
    if is_adapter:
        return f"{output}: the adapters of {checkpoint} (adapter_config.json names the base model)"
    return f"{output}: the model of {checkpoint}" + (", adapters added" if has_adapters else "")


def find(path: Path) -> Path:
    """The whole checkpoint that `path` is, or the newest of the run that it is."""
    folder = path
    if not (path / "trainer.pt").is_file():
        found = list_checkpoints(path)
        if not found:
            raise UserError(f"--checkpoint {path} is neither a global_step_N folder nor a run's folder that has one")
        folder = found[-1]
    try:
        check(folder)
    except DamageError as damage:
        raise UserError(f"{folder} is damaged: {damage}; take another checkpoint") from None
    return folder


def _copy(checkpoint: Path, output: Path, *, is_adapter: bool) -> None:
    """The tokenizer and processor files come with adapters too: the chat template is part of what was trained."""
    partial = output.with_name(output.name + PARTIAL)
    weights = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint / "policy", partial, ignore=shutil.ignore_patterns(*weights) if is_adapter else None)
        if is_adapter:
            shutil.copytree(checkpoint / "adapter", partial, dirs_exist_ok=True)
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"--output {output} cannot be written ({error.strerror or error})") from None


if __name__ == "__main__":
    sys.exit(main())
