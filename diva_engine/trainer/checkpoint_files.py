"""Folders that survive a crash: every file checksummed and on the disk before the folder gets its name.

A folder is whole if it has a manifest and every file that the manifest names has the size and the SHA-256 that stand
there. What is being written carries another name (`global_step_N.partial`), so that no half is ever taken for a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # ends the name of a folder that is being written
DAMAGED = ".damaged"  # ends the name of a folder that failed its check and was put aside
NUM_READERS = 4  # files checked at a time: a disk array is faster than one core's SHA-256


class DamageError(Exception):
    """A checkpoint is not whole; the message names the file and what is wrong with it."""


def seal(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Forces the files to the disk; their size and SHA-256 as a manifest names them: {path in folder: {...}}."""
    return {str(path.relative_to(folder)): _seal_one(path) for path in sorted(paths)}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """`manifest` holds the files' seals under "files"."""
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _force(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises DamageError where there is none or it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest["files"], dict):
            raise ValueError
    except FileNotFoundError:
        raise DamageError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    return manifest


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a whole folder. Raises DamageError for one that is not whole. Reads every byte."""
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        list(pool.map(lambda item: _check_one(folder, *item), manifest["files"].items()))
    return manifest


def publish(partial: Path, final: Path) -> None:
    """Gives a sealed folder its name, for good. What bears that name already is removed last."""
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _force(folder)
    earlier = final.with_name(final.name + DAMAGED)
    if final.exists():  # of the same step, in a run that was told to go on from before it
        shutil.rmtree(earlier, ignore_errors=True)
        os.rename(final, earlier)
    os.rename(partial, final)
    _force(final.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def replace_file(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _force(temporary)
    os.replace(temporary, path)


def _seal_one(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _check_one(folder: Path, name: str, sealed: Mapping[str, Any]) -> None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != sealed["bytes"]:
            raise DamageError(f"{name} has {size:,} bytes, {sealed['bytes']:,} were written")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sealed["sha256"]:
                raise DamageError(f"{name} does not hold what was written (its SHA-256 differs)")
    except FileNotFoundError:
        raise DamageError(f"{name} is missing") from None
    except (OSError, KeyError, TypeError) as error:
        raise DamageError(f"{name} cannot be checked ({error})") from None


def _force(path: Path) -> None:
    """Onto the disk: a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
