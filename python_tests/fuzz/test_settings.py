"""Every setting with wrong types, out of its range and misspelt; every text with nasty values."""

from __future__ import annotations

import os
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import diva_engine.train
from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.config import Config
from diva_engine.records import UserError
from diva_engine.settings import describe_settings, flatten, load_config
from diva_engine.trainer.loop import Trainer
from python_tests.fuzz.tree import changes, snapshot
from python_tests.fuzz_budget import TRIED
from python_tests.models import build_tiny_model
from python_tests.questions import write_questions

NAMES = [name for name, _, _ in describe_settings()]
DEFAULTS = flatten(Config())


def kinds_of(section: Any, prefix: str = "") -> dict[str, Any]:
    """The annotated type of every setting, found apart from settings.py."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(section).items():
        if hasattr(kind, "__dataclass_fields__"):
            found |= kinds_of(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = kind
    return found


def ranges_of(section: Any, prefix: str = "") -> dict[str, tuple[float | None, float | None]]:
    found: dict[str, tuple[float | None, float | None]] = {}
    hints = typing.get_type_hints(section)
    for name, item in section.__dataclass_fields__.items():
        if hasattr(hints[name], "__dataclass_fields__"):
            found |= ranges_of(hints[name], f"{prefix}{name}.")
        else:
            found[prefix + name] = (item.metadata["low"], item.metadata["high"])
    return found


OFF_BELOW = {"trainer.max_steps", "trainer.val_freq", "trainer.save_freq", "trainer.save_limit"}  # -1 is EasyR1's off
ANY_NUMBER = {"worker.reward.failed_score"}
KINDS, RANGES = kinds_of(Config), ranges_of(Config)
LISTS, MAPS, TEXTS = ([], [1], [[]], ["a", None]), ({}, {"a": 1}), ("word", "", "1e", "\0", "é" * 300)
NUMBERS = (0, -1, 1.5, 10**40, -1e308, float("nan"), float("inf"), -float("inf"))
WRONG: dict[Any, tuple[Any, ...]] = {  # values that do not fit, by type; null leaves a setting as it is
    str: (*LISTS, *MAPS, "\0", "a\ud83d"),
    bool: (*LISTS, *MAPS, *TEXTS, *NUMBERS),
    int: (*LISTS, *MAPS, *TEXTS, True, 1.5, float("nan"), float("inf"), -float("inf")),
    float: (*LISTS, *MAPS, *TEXTS, True, float("nan"), float("inf")),
    list: (*MAPS, *TEXTS, *NUMBERS, True),
    dict: (*LISTS, *TEXTS, *NUMBERS, True),
    Literal: (*LISTS, *MAPS, *TEXTS, *NUMBERS, True),
    types.UnionType: (*MAPS, "\0", [[]], [{}]),  # one text or several
}


def refused(name: str, value: Any, tmp_path: Path) -> str:
    """The refusal of a value in a YAML file; it names the setting, on one line."""
    TRIED["settings with a wrong value"] += 1
    section, _, leaf = name.rpartition(".")
    tree: dict[str, Any] = {leaf: value}
    for part in reversed(section.split(".")):
        tree = {part: tree}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_config([f"config={path}"], recipe_defaults)
    said = str(error.value)
    assert name in said or leaf in said, said
    assert "\n" not in said
    assert len(said) < 1500
    return said


def test_every_setting_has_a_known_type():
    assert list(KINDS) == NAMES
    assert {typing.get_origin(kind) or kind for kind in KINDS.values()} <= WRONG.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_a_wrong_type_is_refused(name, tmp_path):
    for value in WRONG[typing.get_origin(KINDS[name]) or KINDS[name]]:
        refused(name, value, tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if KINDS[name] in (int, float)])
def test_a_value_out_of_range_is_refused(name, tmp_path):
    low, high = RANGES[name]
    assert low is not None or high is not None or name in ANY_NUMBER, f"{name} has no bounds"
    just_below = () if low is None or name in OFF_BELOW else (low - 1,)
    for value in (*just_below, -(10**20)) if low is not None else ():
        assert "out of range" in refused(name, value, tmp_path)
    for value in (high + 1, 10**20) if high is not None else ():
        assert "out of range" in refused(name, value, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_name_is_refused_with_the_right_one(name):
    section, _, leaf = name.rpartition(".")
    for wrong in (leaf[:-1] + "x", leaf[1:], leaf + "s", leaf.replace("_", "-", 1) + "_", leaf.upper(), leaf + "\0"):
        word = f"{section}.{wrong}"
        if word in NAMES:
            continue
        TRIED["misspelt settings"] += 1
        with pytest.raises(UserError, match=r"is not a setting; did you mean [\w.]+\?") as error:
            load_config([f"{word}=1"])
        assert "\n" not in str(error.value)
        if wrong in (leaf[:-1] + "x", leaf + "s") and len(leaf) > 6:
            assert f"did you mean {name}?" in str(error.value)


def test_words_and_files_of_any_bytes(tmp_path, budget):
    """Not one that is read as something else: settings or a refusal on one line."""
    pieces = [
        "data",
        "seed",
        ".",
        "=",
        ":",
        "\n",
        "  ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "&a",
        "*a",
        "!!python/object:os.x",
        "1",
        "#",
    ]
    path = tmp_path / "run.yaml"
    for draw in budget.draws("settings files and words", 50):
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 30)))
        path.write_text(text)
        for words in ([f"config={path}"], [text], [f"{draw.choice(NAMES)}={text}"]):
            try:
                load_config(words, recipe_defaults)
            except UserError as error:
                assert "\n" not in str(error), words  # noqa: PT017


HOSTILE_YAML = {
    "aliases of aliases": "a: &a0 {x: 1}\n" + "".join(f"b{i}: &a{i + 1} {{p: *a{i}, q: *a{i}}}\n" for i in range(60)),
    "within itself": "data: &a {seed: *a}",
    "deep brackets": "a: " + "[" * 3000,
    "code": "data: !!python/object/apply:os.mkdir [executed]",
    "a date that is none": "data: {seed: 2026-99-99}",
    "two documents": "data: {seed: 1}\n---\ndata: {seed: 2}",
    "a list": "[1, 2]",
    "a key that is no text": "{1: {2: 3}}",
    "a merge of nothing": "data: {<<: 5}",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", HOSTILE_YAML)
def test_a_hostile_file_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TRIED["hostile settings files"] += 1
    path = tmp_path / "run.yaml"
    path.write_text(HOSTILE_YAML[case])
    with pytest.raises(UserError) as error:
        load_config([f"config={path}"], recipe_defaults)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


NASTY = [
    *(
        "\0",
        "a\0b",
        " ",
        "nowhere",
        "../outside/file",
        "/proc/self/mem",
        "/dev/null",
        "/dev/full",
        "~nobody/x",
        "a" * 5000,
    ),
    *(
        "{{",
        "{% for %}",
        "%s%s%n",
        "$(touch executed)",
        "`touch executed`",
        "; touch executed",
        "é\u202e",
        "-1",
        "a/b",
        "a\nb",
    ),
    *("file.txt:f", "http://127.0.0.1:9/x", "latest", "null", "*", "."),
]
TEXT_SETTINGS = [name for name in NAMES if KINDS[name] is str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=32)
    write_questions(folder / "train.parquet", 4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_SETTINGS)
def test_texts_with_nasty_values_build_a_run_or_say_why_not(name, inputs, tmp_path, monkeypatch, capsys):
    """The whole command up to the first step. Beside the run's folder nothing is made or changed."""
    sandbox = tmp_path / "sandbox" / "here"
    sandbox.mkdir(parents=True)
    (tmp_path / "sandbox" / "outside").mkdir()
    (tmp_path / "sandbox" / "outside" / "file").write_text("not yours")
    monkeypatch.chdir(sandbox)
    monkeypatch.setattr(Trainer, "run", lambda self: {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [f"model={inputs / 'model'}", f"data.train_files={inputs / 'train.parquet'}", "data.rollout_batch_size=2"]
    before_inputs = snapshot(inputs)
    for number, value in enumerate(NASTY):
        TRIED["nasty texts in settings"] += 1
        before = snapshot(tmp_path / "sandbox")
        run = ["trainer.logger=[file,tensorboard]"]
        if name not in ("trainer.save_checkpoint_path", "trainer.experiment_name"):
            run.append(f"trainer.save_checkpoint_path=runs/{number}")
        code = diva_engine.train.main([*words, *run, f"{name}={value}"])
        error = capsys.readouterr().err
        assert code in (0, 2), (value, error)
        if code == 2:
            last = error.splitlines()[-1]
            assert last.startswith("error: "), (value, error)
            assert len(last) < 6000
        made = changes(before, snapshot(tmp_path / "sandbox"))
        if name != "trainer.save_checkpoint_path":
            assert all(path == "here/runs" or path.startswith("here/runs/") for path in made), (value, made)
        assert not (sandbox / "executed").exists()
    assert changes(before_inputs, snapshot(inputs)) == []
    assert os.listdir(tmp_path / "sandbox" / "outside") == ["file"]
