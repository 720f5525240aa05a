"""Reads, checks and writes the settings that config.py names.

They come from four layers, later ones winning: config.py's defaults, the recipe's own defaults, a YAML file
(`config=FILE`), and `section.name=value` on the command line, wherever among these words `config=` stands. An unknown
name, a wrong type or a value out of range is a `UserError` that names the setting and the mend.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from diva_engine.config import AlgorithmConfig, Config
from diva_engine.records import UserError

SHORTHANDS = {
    "algorithm": "algorithm.adv_estimator",
    "preset": "algorithm.preset",
    "model": "worker.actor.model.model_path",
    "seed": "data.seed",
}

RECIPE_NAME, PRESET_NAME = "algorithm.adv_estimator", "algorithm.preset"

T = TypeVar("T")


def load_config(
    arguments: Sequence[str], recipe_defaults: Callable[[str, str], Mapping[str, Any]] = lambda name, preset: {}
) -> Config:
    """The run's settings from `config=FILE` and `section.name=value` arguments.

    Args:
        arguments: command-line words; of two that set the same, the later wins, and any wins over a file.
        recipe_defaults: from the recipe's name and the preset to its own defaults, as {"section.name": value}.
    """
    in_files: dict[str, Any] = {}
    in_words: dict[str, Any] = {}
    for word in arguments:
        name, separator, value = word.partition("=")
        if not separator:
            raise UserError(f"{word!r} is not a setting: write section.name=value, or config=FILE")
        name = SHORTHANDS.get(name, name)
        if name == "config":
            in_files.update(_read_file(value))
        else:
            in_words[name] = _parse(name, value)
    return build_config(_with_presets(in_files, in_words, recipe_defaults))


def _with_presets(
    in_files: Mapping[str, Any],
    in_words: Mapping[str, Any],
    recipe_defaults: Callable[[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    default = AlgorithmConfig()
    of_files = (
        in_files.get(RECIPE_NAME, in_words.get(RECIPE_NAME, default.adv_estimator)),
        in_files.get(PRESET_NAME, default.preset),
    )
    recipe = in_words.get(RECIPE_NAME, of_files[0])
    preset = in_words.get(PRESET_NAME, of_files[1] if recipe == of_files[0] else default.preset)
    if (recipe, preset) != of_files:
        # A saved file holds every setting: what its own recipe left or preset gives way to the new recipe's presets.
        untouched = {**flatten(Config()), **recipe_defaults(*of_files)}
        in_files = {
            name: value for name, value in in_files.items() if name not in untouched or value != untouched[name]
        }
    return {**recipe_defaults(recipe, preset), **in_files, **in_words, PRESET_NAME: preset}


def build_config(values: Mapping[str, Any]) -> Config:
    """A `Config` from dotted names; names not given keep their defaults."""
    known = _leaves(Config)
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(f"{name} is not a setting; did you mean {nearest}?")
    checked = {name: _check(name, known[name], value) for name, value in values.items()}
    config = _assemble(Config, "", checked)
    _refuse_unfit(config)
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings as {"section.name": value}."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        flat.update(
            flatten(value, f"{prefix}{item.name}.") if dataclasses.is_dataclass(value) else {prefix + item.name: value}
        )
    return flat


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved settings as YAML that `config=` reads back."""
    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def describe_settings() -> Iterator[tuple[str, Any, str]]:
    """(name, default, meaning) of every setting, for help texts."""
    defaults = flatten(Config())
    for name, leaf in _leaves(Config).items():
        yield name, defaults[name], leaf.meaning


@dataclass(frozen=True)
class _Leaf:
    """One setting as the checks need it."""

    kind: Any  # its annotated type
    meaning: str
    low: float | None
    high: float | None

    @property
    def span(self) -> str:
        bounds = (("at least", self.low), ("at most", self.high))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "finite"

    def contains(self, value: float) -> bool:
        above = self.low is None or value >= self.low
        below = self.high is None or value <= self.high
        return math.isfinite(value) and above and below


def _leaves(section: type, prefix: str = "") -> dict[str, _Leaf]:
    """Every setting below `section` by its dotted name."""
    kinds = typing.get_type_hints(section)
    leaves: dict[str, _Leaf] = {}
    for item in dataclasses.fields(section):
        name, kind = prefix + item.name, kinds[item.name]
        if dataclasses.is_dataclass(kind):
            leaves.update(_leaves(typing.cast(type, kind), f"{name}."))
        else:
            leaves[name] = _Leaf(kind, item.metadata["meaning"], item.metadata["low"], item.metadata["high"])
    return leaves


def _read_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"config={path} cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"config={path} is no text; give the path of a YAML file") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise UserError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold settings by section (`data:`, `worker:`, ...), not a {type(tree).__name__}")
    return dict(_flatten_tree(tree, ""))


def _flatten_tree(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not _takes_mapping(name):
            yield from _flatten_tree(value, f"{name}.")
        elif value is None and _is_section(name):
            continue  # all of its settings are commented out
        else:
            yield SHORTHANDS.get(name, name), value


def _is_section(name: str) -> bool:
    return any(leaf.startswith(f"{name}.") for leaf in _leaves(Config))


def _takes_mapping(name: str) -> bool:
    leaf = _leaves(Config).get(name)
    return leaf is not None and typing.get_origin(leaf.kind) is dict


def _parse(name: str, text: str) -> Any:
    """The value of a command-line word: as it stands for a setting that takes text, else as YAML."""
    leaf = _leaves(Config).get(name)
    if leaf is not None and leaf.kind is str:
        return text
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _check(name: str, leaf: _Leaf, value: Any) -> Any:
    """`value` in the setting's type, or a `UserError` that says what fits."""
    if typing.get_origin(leaf.kind) is Literal:
        choices = typing.get_args(leaf.kind)
        # YAML reads a bare `null` or `~` as None; it means the choice "none" where there is one.
        value = "none" if value is None and "none" in choices else value
        if value not in choices:
            raise UserError(f"{name}={value} is not a choice; take one of {', '.join(map(str, choices))}")
        return value
    value = _convert(name, leaf.kind, value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not leaf.contains(value):
        raise UserError(f"{name}={value} is out of range: it must be {leaf.span}")
    return value


def _convert(name: str, kind: Any, value: Any) -> Any:
    base = typing.get_origin(kind) or kind
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is str and not isinstance(value, (Mapping, list)):
        return "" if value is None else str(value)
    if base is bool and isinstance(value, bool):
        return value
    if base is int and is_number and math.isfinite(value) and value == int(value):
        return int(value)
    if base is float and (is_number or _reads_as_number(value)):
        return float(value)
    if base is list and isinstance(value, (list, tuple)):
        (element,) = typing.get_args(kind)
        return [_convert(f"{name}[{i}]", element, v) for i, v in enumerate(value)]
    if base is dict and isinstance(value, Mapping):
        return dict(value)
    raise UserError(f"{name}={value!r} does not fit; it takes {_WANTED[base]}")


_WANTED = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list like [a, b]",
    dict: "a mapping like {key: value}",
}


def _refuse_unfit(config: Config) -> None:
    """What no setting can be checked for alone."""
    betas, difficulty = config.worker.actor.optim.betas, config.difficulty
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"worker.actor.optim.betas={betas} must be two numbers of at least 0 and below 1")
    if difficulty.low > difficulty.high:
        raise UserError(f"difficulty.low={difficulty.low:g} is above difficulty.high={difficulty.high:g}")
    _refuse_template("hint.question_template", config.hint.question_template, ("question", "steps"))
    _refuse_template("hint.answer_template", config.hint.answer_template, ("steps",))


def _refuse_template(name: str, template: str, fields: Sequence[str]) -> None:
    try:
        filled = template.format(**{field: f"\0{field}" for field in fields})
    except (AttributeError, IndexError, KeyError, ValueError):  # other names, or braces that do not match
        filled = ""
    if not all(f"\0{field}" in filled for field in fields):
        places = " and ".join(f"{{{field}}}" for field in fields)
        raise UserError(f"{name}={template!r} must hold {places}; write every other brace twice")


def _reads_as_number(value: Any) -> bool:
    """YAML 1.1 reads 1e-6, without a point, as text."""
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def _assemble(kind: type[T], prefix: str, values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(typing.cast(Any, kind)):
        name = prefix + item.name
        if dataclasses.is_dataclass(hints[item.name]):
            arguments[item.name] = _assemble(hints[item.name], f"{name}.", values)
        elif name in values:
            arguments[item.name] = values[name]
    return kind(**arguments)
