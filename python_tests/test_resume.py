"""Runs that stop and go on: each ends as the unbroken one, bit for bit."""

import itertools
import os
import shlex
import shutil
import signal
import time
from dataclasses import replace
from pkgutil import resolve_name

import pytest

from diva_engine.algorithm.recipes import RECIPES
from diva_engine.rewards.reward import AnswerReward
from diva_engine.train import main
from diva_engine.trainer.checkpoint import list_checkpoints
from python_tests.outcomes import outcome_of, rows_of, without_times
from python_tests.small_runs import choose, small_run, small_settings, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_val=4)


KL = ["algorithm.disable_kl=false", "algorithm.kl_coef=1"]


RESUMED = {name: choose(name) for name in RECIPES} | {
    "kl as loss": KL,
    "dapo, many draws": ["algorithm=dapo", "worker.rollout.n=2", "data.rollout_batch_size=1"],
    "rescue in one stage": [*choose("rescue"), "rescue.dead_by=last_visit", "rescue.shared_std=true"],
    "solved questions rest": ["algorithm=grpo", "difficulty.rest_solved=2"],
    "calibrated variants": ["algorithm=diva", "variants.calibrate=true", "variants.calibration_pairs=1"],
    "gold in several updates": ["algorithm=gold", "worker.actor.global_batch_size=1"],
    "bfloat16": ["worker.actor.model.torch_dtype=bfloat16"],
    "adapters": ["worker.actor.model.lora.rank=4", "worker.actor.optim.lr=1e-2"],
    "long trees split": ["worker.actor.micro_batch_tokens=40"],
    "hint_grpo, lazy": ["algorithm=hint_grpo", "hint_grpo.ladder=lazy"],
    "kl as reward": [*KL, "algorithm.use_kl_loss=false", "algorithm.kl_penalty=k1"],
}


@pytest.mark.parametrize("extra", RESUMED.values(), ids=RESUMED)
def test_two_steps_and_two_more_equal_four(inputs, tmp_path, extra):
    """Metrics, held-out ones too, rollouts, ledger, weights, moments and random states."""
    if any("lora" in word for word in extra):
        pytest.importorskip("peft", reason="peft is not installed: pip install 'diva-engine[lora]'")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    extra = [*extra, "trainer.save_freq=2", "trainer.val_freq=2"]
    small_run(inputs, whole, *extra)
    small_run(inputs, parts, *extra, "trainer.max_steps=2")
    small_run(inputs, parts, *extra, "trainer.load_checkpoint_path=latest")
    first, second = outcome_of(whole), outcome_of(parts)
    assert len(first["metrics"]) == 4 + 3
    for name, found in first.items():
        assert second[name] == found, name


def test_auto_goes_on_where_there_is_a_checkpoint_and_else_begins_anew(inputs, tmp_path, capsys):
    plain = ["algorithm=diva", "trainer.save_freq=2", "trainer.val_freq=2"]
    auto = [*plain, "trainer.load_checkpoint_path=auto"]
    small_run(inputs, tmp_path / "whole", *plain)
    small_run(inputs, tmp_path / "parts", *auto, "trainer.max_steps=2")
    assert f"auto: {tmp_path / 'parts'} holds no checkpoint yet; the run begins anew\n" in capsys.readouterr().out
    # As if killed before its first checkpoint.
    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    (tmp_path / "parts" / "summary.json").unlink()
    (tmp_path / "parts" / "skipped_prompts.txt").write_text("step 2: of the killed run\n")
    small_run(inputs, tmp_path / "parts", *auto, "trainer.max_steps=2")
    assert "begins anew" in capsys.readouterr().out
    assert rows_of(tmp_path / "parts", "metrics.1.jsonl"), "kept"
    assert (tmp_path / "parts" / "skipped_prompts.txt").read_text() == ""
    small_run(inputs, tmp_path / "parts", *auto)
    assert "begins anew" not in capsys.readouterr().out
    assert outcome_of(tmp_path / "parts") == outcome_of(tmp_path / "whole")


def test_answers_judged_by_algebra_are_counted_alike_after_a_resume(inputs, tmp_path):
    """The model is brought to say the same expression again and again: verdicts remembered must not show."""
    reward = AnswerReward.__call__
    says = itertools.cycle([r"\boxed{x+1}", r"\boxed{1+x}"])

    def scored(self, responses, problems, response_lengths=None):
        problems = [replace(problem, answer="(x+1)^1") for problem in problems]
        return reward(self, [next(says) for _ in responses], problems, response_lengths)

    plain = ["worker.reward.reward_function=", "trainer.save_freq=2", "data.val_files="]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerReward, "__call__", scored)
        small_run(inputs, tmp_path / "whole", *plain)
        small_run(inputs, tmp_path / "parts", *plain, "trainer.max_steps=2")
        small_run(inputs, tmp_path / "parts", *plain, "trainer.load_checkpoint_path=latest")
    rows, resumed = (without_times(rows_of(tmp_path / name)) for name in ("whole", "parts"))
    assert [row["reward/algebra"] for row in rows] == [8.0] * 4
    assert rows == resumed


def test_the_best_by_held_out_accuracy_is_kept_and_named(inputs, tmp_path):
    extra = ["trainer.save_freq=1", "trainer.save_limit=1", "trainer.val_freq=1", "trainer.save_best=val/accuracy"]
    summary = small_run(inputs, tmp_path, *extra)
    rows = [row for row in rows_of(tmp_path) if "val/accuracy" in row and row["step"] > 0]
    best = max(rows, key=lambda row: (row["val/accuracy"], row["step"]))["step"]
    assert summary["best_checkpoint"] == str(tmp_path / "checkpoints" / f"global_step_{best}")
    assert {path.name for path in list_checkpoints(tmp_path)} == {f"global_step_{best}", "global_step_4"}


def test_a_finished_run_is_not_written_over(inputs, tmp_path, capsys):
    small_run(inputs, tmp_path, "trainer.max_steps=1")
    assert main(small_settings(inputs, tmp_path, "trainer.max_steps=1")) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_resume_names_what_has_changed_and_refuses_what_cannot_be(inputs, tmp_path, capsys):
    small_run(inputs, tmp_path / "a", "trainer.max_steps=2", "trainer.save_freq=1")
    first, last = list_checkpoints(tmp_path / "a")
    small_run(inputs, tmp_path / "b", "trainer.max_steps=1")

    def refusal(run_dir, *extra):
        assert main(small_settings(inputs, run_dir, *extra)) == 2
        return capsys.readouterr().err.strip()

    from_first = f"trainer.load_checkpoint_path={first}"
    assert "global_step_2 is later than global_step_1" in refusal(tmp_path / "a", from_first)
    assert "already holds another run" in refusal(tmp_path / "b", from_first)
    frozen = ["trainer.load_checkpoint_path=latest", "worker.actor.model.freeze_vision_tower=true"]
    assert "restore worker.actor.model.freeze_vision_tower" in refusal(tmp_path / "a", *frozen)
    capsys.readouterr()
    summary = small_run(inputs, tmp_path / "a", f"trainer.load_checkpoint_path={last}", "worker.actor.optim.lr=1e-2")
    assert summary["steps"] == 4
    text = capsys.readouterr().out
    assert "changed since global_step_2: worker.actor.optim.lr was 0.001, is 0.01\n" in text
    assert text.count("changed since") == 1


MOMENTS = {  # the signal, what is under way when it comes, the how manieth time, and the step that the checkpoint is of
    "rollouts": (signal.SIGINT, "collect.Collector.collect", 3, 2),
    "first rollouts": (signal.SIGTERM, "collect.Collector.collect", 1, 0),
    "update": (signal.SIGTERM, "update.Updater.update", 3, 3),
    "held-out questions": (signal.SIGTERM, "loop.validate", 2, 2),
    "held-out questions before the first step": (signal.SIGTERM, "loop.validate", 1, 0),
    "saving": (signal.SIGINT, "checkpoint_saver.CheckpointSaver.save", 1, 2),
    "the last update": (signal.SIGTERM, "update.Updater.update", 4, 4),
}


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    small_run(inputs, folder, "trainer.save_freq=2", "trainer.val_freq=2", "algorithm=diva")
    return outcome_of(folder)


@pytest.mark.parametrize(("number", "place", "call", "step"), MOMENTS.values(), ids=MOMENTS)
def test_a_signal_stops_with_a_checkpoint_and_says_how_to_go_on(
    inputs, unbroken, tmp_path, capsys, number, place, call, step
):
    """At whatever moment it comes, the run that goes on ends as the unbroken one, bit for bit."""
    calls = itertools.count(1)
    owner, _, name = f"diva_engine.trainer.{place}".rpartition(".")
    original = getattr(resolve_name(owner), name)

    def signalled(*args, **kwargs):
        if next(calls) == call:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # for the thread that listens
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{owner}.{name}", signalled)
        words = small_settings(inputs, tmp_path, "trainer.save_freq=2", "trainer.val_freq=2", "algorithm=diva")
        code = main(words)
    assert code == 128 + number
    told, command = capsys.readouterr().out.splitlines()[-1].split("; go on with: ")
    assert told == f"stopped by {number.name} after step {step}; {list_checkpoints(tmp_path)[-1]} holds the run"
    assert list_checkpoints(tmp_path)[-1].name == f"global_step_{step}"
    assert shlex.split(command)[:3] == ["python", "-m", "diva_engine.train"]
    assert main(shlex.split(command)[3:]) == 0
    assert outcome_of(tmp_path) == unbroken


def test_ctrl_c_is_one_line(inputs, tmp_path, capsys, monkeypatch):
    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr("diva_engine.train.Trainer.run", interrupted)
    assert main(small_settings(inputs, tmp_path)) == 130
    assert capsys.readouterr().err.startswith("stopped; ")
