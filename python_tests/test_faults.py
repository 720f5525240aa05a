"""Whole runs into which faults are put: what must go on goes on with the same numbers, what must stop loses nothing."""

import json

import pytest
import torch

from diva_engine.policy.model import load_policy
from diva_engine.records import UserError
from diva_engine.replay import main as replay_main
from diva_engine.rollout.native_engine import NativeEngine
from python_tests.questions import EVEN_LENGTH_REWARD
from python_tests.small_runs import small_run, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def steps_of(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))} for row in rows]


def without(rows, name):
    return [{k: v for k, v in row.items() if k != name} for row in rows]


def faults_of(run_dir):
    return [json.loads(line) for line in (run_dir / "faults.jsonl").read_text().splitlines()]


def weights_of(run_dir, step):
    return load_policy(run_dir / f"checkpoints/global_step_{step}/policy").model.state_dict()


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def dying_engine(monkeypatch):
    """The native engine dies in the middle of decoding, at the given decoding steps of the whole run."""
    decode = NativeEngine._record
    count = 0

    def dying(*steps):
        def record(self, answers, tokens, logprobs):
            nonlocal count
            count += 1
            if count in steps:
                raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")
            return decode(self, answers, tokens, logprobs)

        monkeypatch.setattr(NativeEngine, "_record", record)

    return dying


def test_an_engine_that_dies_is_restarted_and_the_run_ends_the_same(inputs, tmp_path, dying_engine):
    small_run(inputs, tmp_path / "whole", "algorithm=diva")
    dying_engine(3, 30)  # in the first step and in a later one
    small_run(inputs, tmp_path / "hurt", "algorithm=diva")
    whole, hurt = steps_of(tmp_path / "whole"), steps_of(tmp_path / "hurt")
    name = "rollout/engine_restarts"
    assert without(whole, name) == without(hurt, name)
    assert [row[name] for row in whole] == [0.0] * 4
    assert sum(row[name] for row in hurt) == 2.0
    assert hurt[0][name] == 1.0
    assert same_weights(weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "hurt", 4))
    first = faults_of(tmp_path / "hurt")[0]
    assert (first["step"], first["fault"]) == (1, name)
    assert "RuntimeError: CUDA error: an illegal memory access was encountered)" in first["line"]
    assert "in _answer_chunk" in first["detail"], "the traceback is kept"


def test_an_engine_that_dies_twice_in_a_step_stops_the_run_and_nothing_is_lost(inputs, tmp_path, monkeypatch):
    small_run(inputs, tmp_path / "whole")
    generate, count = NativeEngine.generate, 0

    def failing(self, *args):
        nonlocal count
        count += 1
        if count in (3, 4):  # the third step, and once more
            raise RuntimeError("EngineDead")
        return generate(self, *args)

    monkeypatch.setattr(NativeEngine, "generate", failing)
    with pytest.raises(UserError) as caught:
        small_run(inputs, tmp_path / "hurt")
    saved = tmp_path / "hurt" / "checkpoints" / "global_step_2"
    assert str(caught.value) == (
        "the rollout engine failed twice within a step (RuntimeError: EngineDead); "
        f"{saved} holds the run as it was before step 3"
    )
    assert [row["fault"] for row in faults_of(tmp_path / "hurt")] == ["rollout/engine_restarts", "traceback"]
    small_run(inputs, tmp_path / "hurt", "trainer.load_checkpoint_path=latest")
    assert steps_of(tmp_path / "hurt") == steps_of(tmp_path / "whole")
    assert same_weights(weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "hurt", 4))


# Rewards that are finite, but too large for the advantages to be: the loss is not a number.
HUGE_REWARD = """
def score(inputs):
    size = [3e38 if {poison} else 1.0 for item in inputs]
    return [{{"overall": size[i] * (1 if i % 2 else -1), "accuracy": 0.0}} for i in range(len(inputs))]
"""
NO_SCALE = ["algorithm=dr_grpo"]


def test_a_batch_that_breaks_the_loss_is_skipped_and_the_run_goes_on(inputs, tmp_path, capsys):
    (tmp_path / "reward.py").write_text(HUGE_REWARD.format(poison='"Count to 3?" in item["question"]'))
    reward = f"worker.reward.reward_function={tmp_path / 'reward.py'}:score"
    saving = ["trainer.max_steps=3", "trainer.save_freq=1", "trainer.save_limit=0"]
    small_run(inputs, tmp_path / "run", *NO_SCALE, reward, "data.shuffle=false", *saving)
    rows = steps_of(tmp_path / "run")
    assert [row["actor/skipped_steps"] for row in rows] == [0.0, 1.0, 0.0]
    weights = [weights_of(tmp_path / "run", step) for step in (1, 2, 3)]
    assert same_weights(weights[0], weights[1])
    assert not same_weights(weights[1], weights[2])
    (path,) = (tmp_path / "run" / "skipped_batches").iterdir()
    assert path.name == "step_2.pt"
    assert replay_main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (broken,) = [line for line in lines if "<- not finite, nor its credit" in line]
    assert broken.split()[:1] == ["q3/0"]
    (sound,) = [line for line in lines if line.startswith("q2/0")]
    assert float(sound.split()[3]) > 0


def test_too_many_broken_batches_stop_the_run_with_a_checkpoint(inputs, tmp_path):
    (tmp_path / "reward.py").write_text(HUGE_REWARD.format(poison="True"))
    reward = f"worker.reward.reward_function={tmp_path / 'reward.py'}:score"
    with pytest.raises(UserError, match=r"2 optimizer steps in a row had a loss .*\(trainer.max_skipped_steps=1\)"):
        small_run(inputs, tmp_path / "run", *NO_SCALE, reward, "trainer.max_skipped_steps=1")
    assert [row["actor/skipped_steps"] for row in steps_of(tmp_path / "run")] == [1.0, 1.0]
    saved = tmp_path / "run" / "checkpoints" / "global_step_2"
    assert same_weights(weights_of(tmp_path / "run", 2), load_policy(inputs / "model").model.state_dict())
    assert torch.load(saved / "trainer.pt", weights_only=True)["updater"]["skipped_in_a_row"] == 2


def test_a_phase_that_hangs_is_shown_in_status_and_stacks(inputs, tmp_path):
    """The reward function sleeps for 3 s in every step; the bound is 1 s."""
    (tmp_path / "reward.py").write_text("import time\n" + EVEN_LENGTH_REWARD.replace("return", "time.sleep(3); return"))
    reward = f"worker.reward.reward_function={tmp_path / 'reward.py'}:score"
    small_run(inputs, tmp_path / "run", reward, "trainer.phase_limit_s=1", "trainer.max_steps=1")
    stacks = (tmp_path / "run" / "stacks_rank0.txt").read_text()
    assert "reward has taken" in stacks
    assert "pool.py" in stacks
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"], status["num_steps"]) == ("finished", 1, 1)


# Scores one answer a call, while others are generated; what it does with the third step's answers.
SEQUENTIAL = """
REWARD_TYPE = "sequential"
def score(item):
    if item["question"][-2] in "45":
        {deed}
    return float(item["response_length"] % 2)
"""


def test_a_reward_that_fails_while_answers_are_generated_stops_without_a_loss(inputs, tmp_path):
    path = tmp_path / "reward.py"
    extra = [f"worker.reward.reward_function={path}:score", "data.shuffle=false", "worker.rollout.max_batch_rows=2",
             "trainer.max_steps=3"]  # fmt: skip
    path.write_text(SEQUENTIAL.format(deed="raise ZeroDivisionError('there')"))
    for name, overlap in (("early", "true"), ("late", "false")):
        with pytest.raises(UserError) as caught:
            small_run(inputs, tmp_path / name, *extra, f"worker.reward.overlap={overlap}")
        saved = tmp_path / name / "checkpoints" / "global_step_2"
        assert str(caught.value) == (
            "reward function reward.py:score failed on an answer (problem q4): ZeroDivisionError: there (line 5); mend "
            "the function, or set on_failure=score to give such answers failed_score and go on; "
            f"{saved} holds the run as it was before step 3"
        )
    path.write_text(SEQUENTIAL.format(deed="pass"))
    small_run(inputs, tmp_path / "early", *extra, "trainer.load_checkpoint_path=latest")
    small_run(inputs, tmp_path / "whole", *extra)
    assert steps_of(tmp_path / "early") == steps_of(tmp_path / "whole")


# What a reward file does with the third step's answers (q4 and q5, in order); counted how; and the stop's words.
DEEDS = {
    "raises": ("raise ZeroDivisionError('there')", "errors", "ZeroDivisionError: there"),
    "hangs": ("time.sleep(99)", "timeouts", "no result within 2 s"),
    "returns NaN": ("return [float('nan')] * len(inputs)", "errors", "overall is nan"),
    "returns a string": ("return ['good'] * len(inputs)", "errors", "overall is 'good', not a number"),
    "returns too few": ("return [1.0]", "errors", "it returned 1 results for 8 items"),
    "exits": ("os._exit(3)", "errors", "its worker process ended with exit code 3"),
}
HARMED = """
import os, time
def score(inputs):
    if any(item["question"][-2] in "45" for item in inputs):
        {deed}
    return [float(item["response_length"] % 2) for item in inputs]
"""


@pytest.mark.parametrize(("deed", "counter", "words"), DEEDS.values(), ids=DEEDS)
def test_a_reward_that_fails_costs_its_answers_or_stops_without_a_loss(inputs, tmp_path, deed, counter, words):
    (tmp_path / "sound.py").write_text(HARMED.format(deed="pass"))
    path = tmp_path / "reward.py"
    path.write_text(HARMED.format(deed=deed))
    extra = [f"worker.reward.reward_function={path}:score", "data.shuffle=false", "worker.reward.batch_time_limit_s=2",
             "trainer.max_steps=3"]  # fmt: skip
    small_run(inputs, tmp_path / "tolerant", *extra, "worker.reward.on_failure=score", "worker.reward.failed_score=0.5")
    rows = steps_of(tmp_path / "tolerant")
    assert [row[f"reward/{counter}"] > 0 for row in rows] == [False, False, True]
    assert rows[2]["reward/mean"] == 0.5
    with pytest.raises(UserError) as caught:
        small_run(inputs, tmp_path / "strict", *extra)
    message = str(caught.value)
    saved = tmp_path / "strict" / "checkpoints" / "global_step_2"
    assert words in message
    assert message.endswith(f"{saved} holds the run as it was before step 3")
    assert len(message.splitlines()) == 1
    path.write_text(HARMED.format(deed="pass"))
    small_run(inputs, tmp_path / "strict", *extra, "trainer.load_checkpoint_path=latest")
    small_run(inputs, tmp_path / "whole", *extra, f"worker.reward.reward_function={tmp_path / 'sound.py'}:score")
    assert steps_of(tmp_path / "strict") == steps_of(tmp_path / "whole")
    assert same_weights(weights_of(tmp_path / "strict", 3), weights_of(tmp_path / "whole", 3))
