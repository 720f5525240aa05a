"""The models that the regimes begin with, made once by the demo's warm-up and kept in a folder.

A trunk learns to read the picture and to add two and three tiles; each base is a further warm-up or two. What sets them
apart is how sure they are and what they can finish once their answer is begun.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

from bench.learn import chains
from bench.learn.chains import ChainLessons
from diva_engine.demo.lessons import Mixture
from diva_engine.demo.model import make_model, make_tokenizer, save_model_folder
from diva_engine.demo.warmup import WarmUp, warm_up

TRUNK = "trunk"
TRUNK_MIXTURE = Mixture(
    listing=0.3,
    stored=0.0,
    hinted=0.15,
    begun=0.15,
    varied=0.25,
    levels={1: 1, 2: 1, 3: 1},
    hinted_levels={2: 1, 3: 1},
    begun_levels={4: 1, 5: 1, 6: 1},
)


@dataclass(frozen=True)
class Base:
    """A further warm-up, and what is done to the weights after it."""

    plan: WarmUp
    start: str = TRUNK  # the base that it is a further warm-up of; "": random weights
    sharpen: float = 1.0  # factor on the last norm's weight: all logits grow by it, and the policy gets surer
    words: Sequence[str] = ()  # all tokens; the demo's unless given


# The teacher of `gap` miscounts every second tile and mostly takes the unknown term for 5; right is 3.
UNKNOWN_TAUGHT = {1: 0.1, 2: 0.1, 3: 0.12, 4: 0.1, 5: 0.3, 6: 0.1, 7: 0.1, 8: 0.08}
EASY = replace(TRUNK_MIXTURE, listing=0.1)
# A teacher that stops after three tiles: the base can add six, but hardly ever does so unasked.
HURRIED = replace(EASY, hinted=0.0, longest=3, levels={1: 1, 2: 1, 3: 1, 4: 0.5, 5: 0.5, 6: 0.5})
ALL_LEVELS = replace(EASY, levels=dict.fromkeys(range(1, 7), 1))

# The chains' own trunk knows all levels; then a teacher who misreckons one total of four stops after three terms.
CHAINS_TRUNK = "chains_trunk"
LONG_BEGUN = dict.fromkeys((5, 6, 7), 1)
CHAINS = ChainLessons({2: 1, 3: 1, 4: 1, 5: 0.3, 6: 0.3, 7: 0.3}, begun=0.2, begun_levels=LONG_BEGUN)
CHAINS_HURRIED = replace(CHAINS, levels=dict.fromkeys(range(2, 8), 1), longest=3, patience=0.01, noise=0.25)

BASES = {
    TRUNK: Base(WarmUp(TRUNK_MIXTURE, steps=700), start=""),
    "long": Base(WarmUp(ALL_LEVELS, steps=40, learning_rate=6e-4, seed=4)),
    "ladder": Base(WarmUp(replace(HURRIED, noise=0.3), steps=60, learning_rate=5e-4, seed=5), start="long"),
    "gap": Base(
        WarmUp(
            replace(
                EASY,
                hinted=0.1,
                begun=0.4,
                noise=0.55,
                own_steps=4,
                levels={1: 1, 2: 1, 3: 1, 7: 0.1},
                begun_levels={6: 1, 7: 2},
                unknown_taught=UNKNOWN_TAUGHT,
            ),
            steps=200,
            learning_rate=6e-4,
            seed=2,
        )
    ),
    "saturated": Base(WarmUp(HURRIED, steps=50, learning_rate=5e-4, seed=5), start="long", sharpen=1.7),
    CHAINS_TRUNK: Base(WarmUp(CHAINS, steps=600, learning_rate=1.5e-3), start="", words=chains.vocabulary()),
    "chains": Base(
        WarmUp(CHAINS_HURRIED, steps=120, learning_rate=5e-4, seed=5), start=CHAINS_TRUNK, words=chains.vocabulary()
    ),
}

Report = Callable[[str, int, int], None]  # (what, step, of how many)


def make_base(folder: Path, name: str, report: Report) -> Path:
    """The folder of a base, made first where it is not there yet; its trunk too."""
    target = folder / name
    if (target / "config.json").exists():
        return target
    torch.set_num_threads(1)  # sums are split by the number of threads, and the bytes differ with it
    logging.disable_progress_bar()
    base = BASES[name]
    tokenizer = make_tokenizer(base.words)
    if base.start:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(make_base(folder, base.start, report))
    else:
        model = make_model(tokenizer, base.plan.seed)
    _teach(model, tokenizer, base.plan, lambda step: report(name, step, base.plan.steps))
    with torch.no_grad():
        model.model.language_model.norm.weight.mul_(base.sharpen)
    return _save(target, model, tokenizer)


def _teach(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: WarmUp,
    report: Callable[[int], None],
) -> None:
    warm_up(model, tokenizer, plan, lambda step, loss: report(step))


def _save(target: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Written beside its place and renamed, so that an interrupted base is never taken for a whole one."""
    unfinished = target.with_name(f"{target.name}.unfinished.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_model_folder(unfinished, model, tokenizer)
    unfinished.rename(target)
    return target
