"""Reads, checks and writes the settings that config/ names.

They come from four layers, later ones winning: the defaults of config/, the recipe's own defaults, a YAML file
(`config=FILE`), and `section.name=value` on the command line, wherever among these words `config=` stands. An unknown
name, a wrong type or a value out of range is a `UserError` that names the setting and the mend.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from diva_engine.config import AlgorithmConfig, Config
from diva_engine.config.files import read_settings_file
from diva_engine.config.foreign import FOREIGN
from diva_engine.config.leaves import Leaf, find_leaves
from diva_engine.config.texts import refuse_unfit_text
from diva_engine.config.translate import translate
from diva_engine.records import ImageOperation, UserError

SHORTHANDS = {
    "algorithm": "algorithm.adv_estimator",
    "preset": "algorithm.preset",
    "model": "worker.actor.model.model_path",
    "seed": "data.seed",
}

RECIPE_NAME, PRESET_NAME = "algorithm.adv_estimator", "algorithm.preset"

T = TypeVar("T")


def load_config(
    arguments: Sequence[str],
    recipe_defaults: Callable[[str, str], Mapping[str, Any]] = lambda name, preset: {},
    tell: Callable[[str], None] = lambda line: None,
) -> Config:
    """The run's settings from `config=FILE` and `section.name=value` arguments, in our names or those of EasyR1,
    DIVA-GRPO, verl and TRL (config/foreign.py).

    Args:
        arguments: command-line words; of two that set the same, the later wins, and any wins over a file.
        recipe_defaults: from the recipe's name and the preset to its own defaults, as {"section.name": value}.
        tell: is given a line for each group of foreign names, saying what was read as what and what was ignored.
    """
    in_files: dict[str, Any] = {}
    in_words: dict[str, Any] = {}
    for word in arguments:
        name, separator, value = word.partition("=")
        if not separator:
            raise UserError(f"{word!r} is not a setting: write section.name=value, or config=FILE")
        name = SHORTHANDS.get(name, name)
        if name == "config":
            in_file = read_settings_file(value, find_leaves(Config))
            in_files.update({SHORTHANDS.get(name, name): value for name, value in in_file.items()})
        else:
            in_words[name] = _parse(name, value)
    in_files, in_words, notes = translate(in_files, in_words, find_leaves(Config))
    for line in notes:
        tell(line)
    for name in _unset(in_words):
        in_files.pop(name, None)
    return build_config(_with_presets(_without(in_files), _without(in_words), recipe_defaults))


def _unset(values: Mapping[str, Any]) -> list[str]:
    """The names of ours set to null, which leaves them at their default, except where null is a value."""
    leaves = find_leaves(Config)
    return [name for name, value in values.items() if value is None and name in leaves and not leaves[name].takes_null]


def _without(values: Mapping[str, Any]) -> dict[str, Any]:
    unset = _unset(values)
    return {name: value for name, value in values.items() if name not in unset}


def _with_presets(
    in_files: Mapping[str, Any],
    in_words: Mapping[str, Any],
    recipe_defaults: Callable[[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    for values in (in_files, in_words):
        for name in values.keys() & {RECIPE_NAME, PRESET_NAME}:
            _check(name, find_leaves(Config)[name], values[name])
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
    known = find_leaves(Config)
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, [*known, *FOREIGN], n=1, cutoff=0.0)[0]
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
    for name, leaf in find_leaves(Config).items():
        yield name, defaults[name], leaf.meaning


def _parse(name: str, text: str) -> Any:
    """The value of a command-line word: as it stands for a setting that takes text, else as YAML."""
    leaf = find_leaves(Config).get(name)
    if leaf is not None and (leaf.kind is str or (leaf.kind == str | list[str] and not text.startswith("["))):
        return text
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _check(name: str, leaf: Leaf, value: Any) -> Any:
    """`value` in the setting's type, or a `UserError` that says what fits."""
    if typing.get_origin(leaf.kind) is Literal:
        choices = typing.get_args(leaf.kind)
        # YAML reads a bare `null` or `~` as None; it means the choice "none" where there is one.
        value = "none" if value is None and "none" in choices else value
        if value not in choices or isinstance(value, bool):  # true would pass for 1
            raise UserError(f"{name}={value} is not a choice; take one of {', '.join(map(str, choices))}")
        return value
    value = _convert(name, leaf.kind, value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not leaf.contains(value):
        raise UserError(f"{name}={value} is out of range: it must be {leaf.span}")
    return value


def _convert(name: str, kind: Any, value: Any) -> Any:
    base = typing.get_origin(kind) or kind
    if base is types.UnionType:  # one text, or a list of them
        one, several = typing.get_args(kind)
        return _convert(name, several if isinstance(value, (list, tuple)) else one, value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is str and not isinstance(value, (Mapping, list)):
        text = "" if value is None else str(value)
        refuse_unfit_text(name, text)
        return text
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
    if not all(config.worker.rollout.stop):
        raise UserError("worker.rollout.stop has an empty string, which would end every answer at once; take it out")
    _refuse_mismatch(config)
    _refuse_operations(config.variants.operations)
    _refuse_template("hint.question_template", config.hint.question_template, ("question", "steps"))
    _refuse_template("hint.answer_template", config.hint.answer_template, ("steps",))


def _refuse_mismatch(config: Config) -> None:
    """Rollout settings under which the sampler's log-probabilities are not those of what it drew."""
    worker, rollout = config.worker, config.worker.rollout
    if rollout.engine == "vllm" and rollout.temperature > 2:
        raise UserError(f"worker.rollout.temperature={rollout.temperature:g}: vllm takes 2 at most")
    if rollout.top_p < 1 and worker.importance_truncation:
        raise UserError(
            f"worker.rollout.top_p={rollout.top_p:g} draws from a cut distribution: trainer / sampler probability is "
            "no importance weight; take worker.rollout.top_p=1, or, uncorrected, worker.actor.importance_truncation=0"
        )
    if rollout.top_p < 1 and rollout.engine == "vllm" and worker.max_logprob_gap:
        raise UserError(
            f"worker.rollout.top_p={rollout.top_p:g}: vllm's log-probabilities are of the cut distribution, not the "
            "trainer's; take worker.rollout.top_p=1, or worker.rollout.max_logprob_gap=0"
        )


def _refuse_operations(names: Sequence[str]) -> None:
    known = typing.get_args(typing.get_type_hints(ImageOperation)["name"])
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(f"variants.operations: {name} is none; did you mean {nearest}? ({', '.join(known)})")
    if not names or len(set(names)) < len(names):
        raise UserError(f"variants.operations={list(names)} must name at least one operation, and none twice")


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
