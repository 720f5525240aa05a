"""The main job on the embedded default: the model learns, and what is saved is what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.algorithm.variants import original
from diva_engine.data.dataset import open_problems
from diva_engine.data.prompts import PromptEncoder
from diva_engine.evaluate import main as evaluate
from diva_engine.policy.model import load_policy
from diva_engine.rewards.answers import compare
from diva_engine.rewards.extraction import extract_answer
from diva_engine.settings import load_config
from diva_engine.train import train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo as `make train` has built it, else built here."""
    if (ROOT / "demo_data" / "COMPLETE").exists():
        return ROOT / "demo_data"
    folder = tmp_path_factory.mktemp("demo") / "demo_data"
    subprocess.run([sys.executable, "-m", "diva_engine.demo", "build", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """A GRPO run of the example's settings, cut to 60 steps."""
    run_dir = tmp_path_factory.mktemp("run")
    words = [
        f"config={ROOT / 'examples' / 'tiles_cpu.yaml'}",
        f"data.train_files={demo / 'tiles_train.parquet'}",
        f"data.val_files={demo / 'tiles_test.parquet'}",
        f"model={demo / 'model'}",
        "trainer.max_steps=60",
        "trainer.val_freq=0",
        "trainer.logger=[file]",
        f"trainer.save_checkpoint_path={run_dir}",
    ]
    return train(load_config(words, recipe_defaults)), run_dir / "checkpoints" / "global_step_60" / "policy"


def test_held_out_accuracy_rises_by_thirty_points(trained):
    summary, _ = trained
    assert summary["accuracy_after"] >= summary["accuracy_before"] + 0.30
    assert summary["tokens"] / summary["cpu_s"] > 1000, "rollouts, updates and all, in tokens a CPU second"


def test_the_saved_folder_gives_the_same_accuracy_in_plain_transformers(demo, trained, tmp_path):
    summary, folder = trained
    report = tmp_path / "report.json"
    data = demo / "tiles_test.parquet"
    words = ["--model", str(folder), "--data", str(data), "--by", "level", "--output", str(report)]
    assert evaluate(words) == 0, "the length of answers comes from the checkpoint"
    assert json.loads(report.read_text())["with_image"]["accuracy"] == summary["accuracy_after"]
    assert plain_accuracy(folder, data) == pytest.approx(summary["accuracy_after"], abs=0.0036)  # one answer in 288


def plain_accuracy(folder, data):
    """Greedy accuracy with transformers' own generate, question by question."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_policy(folder).processor
    encoder = PromptEncoder(processor)
    right = 0
    problems = open_problems(str(data))
    for problem in problems:
        prompt = encoder.encode(original(problem, 5.0), key=0)
        ids = torch.tensor([prompt.token_ids])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == processor.image_token_id).int(),
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
            suppress_tokens=list(processor.banned_ids),
            max_new_tokens=64,
            do_sample=False,
        )
        text = processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        right += compare(extract_answer(text, "boxed") or "", problem.answer) == "right"
    return right / len(problems)
