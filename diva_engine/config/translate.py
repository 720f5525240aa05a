"""Reads another trainer's settings as ours, by the table in foreign.py, and says what became of each."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from diva_engine.config.foreign import (
    EASYR1_DEFAULTS,
    EASYR1_MARKS,
    EASYR1_MEANS_OTHERWISE,
    FOREIGN,
    SECTIONS,
    VALUES,
    Ignored,
    Mapped,
    Only,
    Rule,
)
from diva_engine.records import UserError

Settings = dict[str, Any]

BATCH, LOGGER = "data.rollout_batch_size", "trainer.logger"
LOGGERS_OF_OTHERS = ("swanlab", "mlflow", "clearml", "trackio")
DIVA_ON = ("trainer.Difficulty_Adaptation", "trainer.DIVA_GRPO")
DIVA_NUM = ("trainer.Varient_Num", "trainer.Variant_Num")
DIVA_ADAPTS = "trainer.Difficulty_Change"
DIVA_WEIGHTS = "algorithm.weight_mode"
DIVA_RRB = ("algorithm.Adjust_Low_Reward_Local", "algorithm.Adjust_Low_Reward_Global")
DIVA_SWITCHES = (*DIVA_ON, *DIVA_NUM, DIVA_ADAPTS, DIVA_WEIGHTS, *DIVA_RRB)  # read together
_INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")


@dataclass
class Notes:
    """What became of the foreign names, for the user."""

    read: dict[str, str] = field(default_factory=dict)  # their name -> ours
    ignored: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # why -> names
    others: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        read = [f"read as ours: {', '.join(f'{a} -> {b}' for a, b in self.read.items())}"] if self.read else []
        ignored = [f"ignored ({why}): {', '.join(names)}" for why, names in self.ignored.items()]
        return read + ignored + self.others


def translate(files: Settings, words: Settings, known: Collection[str]) -> tuple[Settings, Settings, list[str]]:
    """The two layers under our names, and lines that say what was read as what and what was ignored.

    Names that neither we nor the table know stay as they are. Settings that contradict what is built raise UserError.

    Args:
        files: {"section.name": value} of the YAML files.
        words: the same of the command line, which beats the files.
        known: every name of ours.
    """
    notes = Notes()
    merged = {**files, **words}
    files, words = _interpolated(files, merged), _interpolated(words, merged)
    merged = {**files, **words}
    diva = _diva_settings(merged, notes)
    if any(mark in merged for mark in EASYR1_MARKS):
        for name in EASYR1_MEANS_OTHERWISE.keys() & files.keys():
            notes.ignored[EASYR1_MEANS_OTHERWISE[name]].append(name)
            del files[name]
    words = {name: diva[BATCH] if name == BATCH and diva else value for name, value in words.items()}
    layers = [_translated({n: v for n, v in layer.items() if n not in DIVA_SWITCHES}, known, notes)
              for layer in (files, words)]  # fmt: skip
    _tell_defaults(merged, layers, notes)
    return {**layers[0], **diva}, layers[1], notes.lines()


def is_foreign(name: str) -> bool:
    return _rule(name) is not None or name in DIVA_SWITCHES


def _rule(name: str) -> Rule | None:
    if name in FOREIGN:
        return FOREIGN[name]
    return next((rule for section, rule in SECTIONS.items() if name.startswith(section)), None)


def _translated(layer: Settings, known: Collection[str], notes: Notes) -> Settings:
    """One layer: our own names win over what others are read as, and of those the more particular."""
    ours: Settings = {}
    mapped: list[Settings] = []
    for name, value in layer.items():
        rule = None if name in known else _rule(name)
        if rule is None:
            ours[name] = _written_our_way(name, value, notes)
        elif value is not None:
            mapped.append(_read_as_ours(name, value, rule, known, notes))
    for settings in sorted(mapped, key=len):
        ours = {**settings, **{n: value for n, value in ours.items() if value is not None or n not in settings}}
    return ours


def _read_as_ours(name: str, value: Any, rule: Rule, known: Collection[str], notes: Notes) -> Settings:
    if isinstance(rule, Mapped):
        settings = dict(rule.settings(value))
        notes.read[name] = " ".join(settings)
        return _translated(settings, known, notes)
    if isinstance(rule, Ignored):
        notes.ignored[rule.why].append(name)
    elif isinstance(rule, Only) and value not in rule.values:
        raise UserError(f"{name}={value} is not offered here: {rule.mend}; or leave it out")
    return {}


def _written_our_way(name: str, value: Any, notes: Notes) -> Any:
    if name == LOGGER and isinstance(value, list):
        theirs = [logger for logger in value if logger in LOGGERS_OF_OTHERS]
        if theirs:
            notes.ignored["not among our loggers"] += [f"{LOGGER}: {logger}" for logger in theirs]
        return [logger for logger in value if logger not in theirs]
    table = VALUES.get(name, {})
    return table.get(value, value) if isinstance(value, (str, int)) else value


def _tell_defaults(merged: Settings, layers: list[Settings], notes: Notes) -> None:
    silent = [name for name in EASYR1_DEFAULTS if not any(name in layer for layer in layers)]
    if silent and any(mark in merged for mark in EASYR1_MARKS):
        theirs = " ".join(f"{name}={EASYR1_DEFAULTS[name]}".replace(" ", "") for name in silent)
        notes.others.append(f"not set, so our defaults hold; EasyR1's are: {theirs}")


def _diva_settings(merged: Mapping[str, Any], notes: Notes) -> Settings:
    """What DIVA-GRPO's own switches say together; nothing where its difficulty adaptation is off."""
    present = [name for name in DIVA_SWITCHES if merged.get(name) is not None]
    if not any(merged.get(name) is True for name in DIVA_ON):
        if present:
            notes.ignored["DIVA is off"] += present
        return {}
    num = next((merged[name] for name in DIVA_NUM if merged.get(name) is not None), 1)
    batch = merged.get(BATCH, 512)
    if not (isinstance(num, int) and isinstance(batch, int)):
        raise UserError(f"{DIVA_NUM[1]}={num} and {BATCH}={batch} must be whole numbers")
    settings = {
        "algorithm.adv_estimator": "diva",
        "algorithm.preset": "authors",
        "variants.num": num,
        BATCH: math.ceil(batch / (num + 1)),  # theirs counts the variants
        **_weight_mode(str(merged.get(DIVA_WEIGHTS) or "")),
        **_low_reward_rule(merged),
    }
    if merged.get(DIVA_ADAPTS) is False:
        settings |= {"difficulty.rule": "continuous", "difficulty.eta": 0.0}
    said = " ".join(f"{name}={value}" for name, value in settings.items())
    notes.others.append(f"DIVA-GRPO ({', '.join(present)}) is read as: {said}")
    return settings


def _weight_mode(mode: str) -> Settings:
    """`algorithm.weight_mode`: what is weighted and how the batch is normalised, in words joined by "_"."""
    text = mode.upper()
    for word in ("KLCOV", "WBN", "ABS", "RMS"):
        if word in text:
            raise UserError(
                f"{DIVA_WEIGHTS}={mode}: {word} is not offered here; take ZSCORENORM or MINMAXNORM with WAN"
            )
    if not text or text == "NONE":
        return {}
    is_weighted = "WEIGHTAFTER" in text or "WEIGHT_AFTER" in text or "WAN" in text.split("_")
    balance = "padded_tokens" if "ZSCORE" in text else "minmax" if "MINMAX" in text else "none"
    return {"advantage.weight": "global" if is_weighted else "none", "advantage.balance": balance}


def _low_reward_rule(merged: Mapping[str, Any]) -> Settings:
    words = str(merged.get(DIVA_WEIGHTS) or "").upper().split("_")
    local = merged.get(DIVA_RRB[0]) is True or "RRBLOCAL" in words
    global_ = merged.get(DIVA_RRB[1]) is True or "RRBGLOBAL" in words
    if local != global_:
        raise UserError(f"{' and '.join(DIVA_RRB)} differ; advantage.rrb rescales both advantages or none")
    return {"advantage.rrb": "threshold" if local else "none"}


def _interpolated(layer: Settings, merged: Mapping[str, Any]) -> Settings:
    return {name: _resolved(value, merged, (name,)) for name, value in layer.items()}


def _resolved(value: Any, merged: Mapping[str, Any], trail: tuple[str, ...]) -> Any:
    """`${section.name}` and `${oc.env:NAME,default}` replaced; "???" is a value still missing, as in OmegaConf."""
    if isinstance(value, list):
        return [_resolved(one, merged, trail) for one in value]
    if isinstance(value, dict):
        return {key: _resolved(one, merged, trail) for key, one in value.items()}
    if not isinstance(value, str):
        return value
    if value == "???":
        return None
    whole = _INTERPOLATION.fullmatch(value)
    if whole:
        return _looked_up(whole[1], merged, trail)
    return _INTERPOLATION.sub(lambda found: str(_looked_up(found[1], merged, trail)), value)


def _looked_up(name: str, merged: Mapping[str, Any], trail: tuple[str, ...]) -> Any:
    if name.startswith("oc.env:"):
        variable, has_default, default = name.removeprefix("oc.env:").partition(",")
        if variable not in os.environ and not has_default:
            raise UserError(f"{trail[0]}: ${{{name}}}: the environment has no {variable}; set it, or write the value")
        return os.environ.get(variable, default)
    if name in trail:
        raise UserError(f"{trail[0]}: ${{{name}}} leads back to itself; write the value")
    if name not in merged:
        raise UserError(f"{trail[0]}: ${{{name}}} is set nowhere; write the value, or set {name}")
    return _resolved(merged[name], merged, (*trail, name))
