"""A YAML file of settings -> {"section.name": value}. Nothing in it is executed, and nothing in it can hang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from diva_engine.config.leaves import Leaf
from diva_engine.records import UserError

MAX_BYTES = 2**20
MAX_SETTINGS = 10_000  # aliases in YAML can stand for any number


def read_settings_file(path: str, leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """The settings of the file by dotted names, unchecked. Raises UserError naming the file, and the line if known."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise UserError(f"config={path} cannot be read ({error.strerror}); give the path of a YAML file") from None
    except ValueError:  # no UTF-8, or a path that is none
        raise UserError(f"config={path} is no text; give the path of a YAML file") from None
    if len(text) > MAX_BYTES:  # also of a device, which has no end
        raise UserError(f"config={path} has more than {MAX_BYTES} bytes; give the path of a YAML file")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise UserError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:  # a date that is none; too many brackets
        raise UserError(f"{path} cannot be read as YAML ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold settings by section (`data:`, `worker:`, ...), not a {type(tree).__name__}")
    return _flattened(tree, leaves, path)


def _flattened(tree: Mapping[Any, Any], leaves: Mapping[str, Leaf], path: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    try:
        for name, value in _walk(tree, "", leaves):
            settings[name] = value
            if len(settings) > MAX_SETTINGS:
                raise UserError(f"{path} holds more than {MAX_SETTINGS} settings; write them without aliases")
    except RecursionError:
        raise UserError(f"{path} holds a section within itself; write it without aliases") from None
    return settings


def _walk(tree: Mapping[Any, Any], prefix: str, leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        is_section = any(leaf.startswith(f"{name}.") for leaf in leaves)
        if isinstance(value, Mapping) and (value or is_section) and not (name in leaves and leaves[name].takes_mapping):
            yield from _walk(value, f"{name}.", leaves)
        elif value is None and is_section:
            continue  # all of its settings are commented out
        else:
            yield name, value
