"""The training command, whole: a parquet and a model folder in, a run folder out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText

from diva_engine.algorithm.recipes import RECIPES, recipe_defaults
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree
from diva_engine.settings import load_config
from diva_engine.train import main, train
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.metric_names import describe
from diva_engine.trainer.reference import frozen_logprobs
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt
from python_tests.questions import EVEN_LENGTH_REWARD, write_questions


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=32)
    write_questions(folder / "train.parquet", 6)
    write_questions(folder / "val.parquet", 4)
    (folder / "reward.py").write_text(EVEN_LENGTH_REWARD)
    return folder


def settings(inputs, run_dir, *extra):
    return [
        f"data.train_files={inputs / 'train.parquet'}",
        f"data.val_files={inputs / 'val.parquet'}",
        f"model={inputs / 'model'}",
        "data.rollout_batch_size=2",
        "data.max_response_length=8",
        "worker.rollout.n=4",
        "worker.actor.optim.lr=1e-3",
        f"worker.reward.reward_function={inputs / 'reward.py'}:score",
        "trainer.logger=[file]",
        "trainer.max_steps=4",
        f"trainer.save_checkpoint_path={run_dir}",
        *extra,
    ]


def run(inputs, run_dir, *extra):
    return train(load_config(settings(inputs, run_dir, *extra), recipe_defaults))


def rows_of(run_dir, name="metrics.jsonl"):
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))} for row in rows]


PROMPTS = {"diva": 2, "hint_grpo": 3}  # posed for a question
# What a recipe needs to show its second stage within rollouts as few as these.
FEW = {"rescue": ["rescue.probe=2"]}


def choose(algorithm):
    return [f"algorithm={algorithm}", *FEW.get(algorithm, [])]


@pytest.mark.parametrize("algorithm", RECIPES)
def test_a_run_leaves_metrics_rollouts_summary_and_a_model(inputs, tmp_path, algorithm):
    summary = run(inputs, tmp_path, *choose(algorithm), "trainer.max_steps=2")
    assert summary["steps"] == 2
    assert summary["responses"] >= 2 * 2 * PROMPTS.get(algorithm, 1) * 4
    if "dapo" not in algorithm:
        assert summary["responses"] == 2 * 2 * PROMPTS.get(algorithm, 1) * 4
    assert {"accuracy_before", "accuracy_after", "wall_s", "tokens_per_s", "algorithm", "seed"} <= summary.keys()
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    steps = [row for row in rows_of(tmp_path) if "reward/mean" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["sync/logprob_gap_max"] < 1e-4 for row in steps if "sync/logprob_gap_max" in row)
    assert {"question", "text", "reward", "advantage", "difficulty"} <= rows_of(tmp_path, "rollouts.jsonl")[0].keys()
    assert (tmp_path / "config.yaml").exists()
    unexplained = [name for row in rows_of(tmp_path) for name in row if name != "step" and describe(name) is None]
    assert not unexplained, "every metric has its line in metric_names.py"


def test_the_saved_folder_is_an_ordinary_model(inputs, tmp_path):
    run(inputs, tmp_path, "trainer.max_steps=2")
    folder = tmp_path / "checkpoints" / "global_step_2" / "policy"
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    ours, start = load_policy(folder), load_policy(inputs / "model")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name])
    moved = [not torch.equal(value, start.model.state_dict()[name]) for name, value in plain.state_dict().items()]
    assert any(moved)


@pytest.mark.parametrize("algorithm", ["grpo", "diva"])
def test_the_same_seed_gives_the_same_numbers_bit_for_bit(inputs, tmp_path, algorithm):
    for name in ("a", "b"):
        run(inputs, tmp_path / name, f"algorithm={algorithm}", "seed=5")
    run(inputs, tmp_path / "c", f"algorithm={algorithm}", "seed=6")
    first, second, other = (without_times(rows_of(tmp_path / name)) for name in "abc")
    assert first == second
    assert first != other
    assert rows_of(tmp_path / "a", "rollouts.jsonl") == rows_of(tmp_path / "b", "rollouts.jsonl")


KL = ["algorithm.disable_kl=false", "algorithm.kl_coef=1"]
RESUMED = {name: choose(name) for name in RECIPES} | {
    "kl as loss": KL,
    "dapo, many draws": ["algorithm=dapo", "worker.rollout.n=2", "data.rollout_batch_size=1"],
    "rescue in one stage": [*choose("rescue"), "rescue.dead_by=last_visit", "rescue.shared_std=true"],
    "gold in several updates": ["algorithm=gold", "worker.actor.global_batch_size=1"],
    "bfloat16": ["worker.actor.model.torch_dtype=bfloat16"],
    "long trees split": ["worker.actor.micro_batch_tokens=40"],
    "hint_grpo, lazy": ["algorithm=hint_grpo", "hint_grpo.ladder=lazy"],
    "kl as reward": [*KL, "algorithm.use_kl_loss=false", "algorithm.kl_penalty=k1"],
}


@pytest.mark.parametrize("extra", RESUMED.values(), ids=RESUMED)
def test_two_steps_and_two_more_equal_four(inputs, tmp_path, extra):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    extra = [*extra, "data.val_files="]
    run(inputs, whole, *extra, "trainer.save_freq=2")
    run(inputs, parts, *extra, "trainer.max_steps=2")
    run(inputs, parts, *extra, "trainer.load_checkpoint_path=latest")
    steps_whole, steps_parts = (
        [row for row in without_times(rows_of(folder)) if "reward/mean" in row] for folder in (whole, parts)
    )
    assert steps_whole == steps_parts
    last = "checkpoints/global_step_4"
    weights = [load_policy(folder / last / "policy").model.state_dict() for folder in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    states = [torch.load(folder / last / "trainer.pt", weights_only=True) for folder in (whole, parts)]
    ledgers = [state["ledger"] for state in states]
    assert ledgers[0].pop("ids") == ledgers[1].pop("ids")
    for name, column in ledgers[0].items():
        torch.testing.assert_close(column, ledgers[1][name], rtol=0, atol=0, equal_nan=True)


def test_dapo_draws_further_questions(inputs, tmp_path):
    """Answers of one token have an odd length: no group is live, so the search ends with the data."""
    run(inputs, tmp_path, "algorithm=dapo", "data.max_response_length=1", "trainer.max_steps=1")
    (row,) = [row for row in rows_of(tmp_path) if "reward/mean" in row]
    assert row["dapo/questions_asked"] == 6
    assert row["dapo/short_of_live_groups"] == 2
    assert row["step/rollouts"] == 6 * 4
    assert (row["actor/loss"], row["actor/grad_norm"]) == (0.0, 0.0)


BEGUN_REWARD = """
def score(inputs):
    return [{"overall": float("two" in item["response"]), "accuracy": float("two" in item["response"])}
            for item in inputs]
"""


def mean_logprob_of_steps(folder):
    """Of the reference's first two steps as the beginning of an answer, without the picture."""
    policy = load_policy(folder)
    prompt = make_prompt(policy.model, policy.processor, "Count to 1?", prefix="<think>\none ;\ntwo ;\n")
    trees = [AnswerTree(prompt, (), train_prefix=True)]
    return frozen_logprobs(policy, trees, max_tokens=10_000, temperature=1.0)[0].mean().item()


@pytest.mark.parametrize("algorithm", ["rescue", "gold"])
def test_the_policy_learns_to_begin_as_the_reference_does(inputs, tmp_path, algorithm):
    """A random model never says "two"; begun with the reference's steps every answer holds it, so no answer is better
    than another and the prefix alone carries the credit."""
    (tmp_path / "reward.py").write_text(BEGUN_REWARD)
    reward = f"worker.reward.reward_function={tmp_path / 'reward.py'}:score"
    run(inputs, tmp_path, *choose(algorithm), reward, "trainer.max_steps=6", "worker.actor.optim.lr=1e-2")
    before, after = (mean_logprob_of_steps(f) for f in (inputs / "model", list_checkpoints(tmp_path)[-1] / "policy"))
    assert after > before + 1
    steps = [row for row in rows_of(tmp_path) if "reward/mean" in row]
    assert all(row["accuracy/original"] == 0 for row in steps[:2])
    assert steps[-1]["difficulty/mean"] > steps[0]["difficulty/mean"], "what the hint can is not the question's level"
    if algorithm == "rescue":
        assert [row["accuracy/hint"] for row in steps[:2]] == [1.0, 1.0]
        assert [row["actor/trained_rollouts"] for row in steps[:2]] == [0.0, 0.0]


BAD = {
    "missing file": (["data.train_files=nowhere.parquet"], "nowhere.parquet"),
    "no training file": (["data.train_files="], "data.train_files is empty"),
    "no model": (["model="], "worker.actor.model.model_path is empty"),
    "model folder that is none": (["model={inputs}"], "{inputs}"),
    "misspelt setting": (["worker.rolout.n=3"], "did you mean worker.rollout.n?"),
    "unknown algorithm": (["algorithm=dvia"], "did you mean diva?"),
    "more questions than there are": (["data.rollout_batch_size=99"], "data.rollout_batch_size"),
    "no such device": (["trainer.device=cuda"], "trainer.device=cpu"),
    "unknown device": (["trainer.device=gpu"], "take auto, cpu, cuda or cuda:N"),
    "no such column": (["trainer.val_by=levl"], "did you mean level?"),
    "font that is none": (["data.font={inputs}/reward.py"], "give a .ttf or .otf file"),
    "no such logger": (["trainer.logger=[flie]"], "did you mean file?"),
    "reward file missing": (["worker.reward.reward_function=nowhere.py:score"], "nowhere.py"),
    "run folder that cannot be made": (["trainer.save_checkpoint_path=/dev/null/run"], "cannot be made"),
    "checkpoint that is none": (["trainer.load_checkpoint_path={inputs}"], "it has no trainer.pt"),
    "nothing to resume": (["trainer.load_checkpoint_path=latest"], "holds no checkpoint"),
}


@pytest.mark.parametrize(("extra", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(inputs, tmp_path, capsys, extra, message):
    if extra == ["trainer.device=cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = settings(inputs, tmp_path / "run", *[word.format(inputs=inputs) for word in extra])
    assert main(words) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert message.format(inputs=inputs) in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_table_without_answers_and_a_broken_image_are_named(inputs, tmp_path, capsys):
    pq.write_table(pa.table({"problem": ["?"], "solved_by": ["x"]}), tmp_path / "no_answer.parquet")
    assert main(settings(inputs, tmp_path / "a", f"data.train_files={tmp_path / 'no_answer.parquet'}")) == 2
    assert "no_answer.parquet" in capsys.readouterr().err
    rows = [{"problem": "<image>?", "answer": "1", "images": [{"bytes": b"not an image", "path": None}]}]
    pq.write_table(pa.Table.from_pylist(rows * 3), tmp_path / "broken.parquet")
    words = settings(inputs, tmp_path / "b", f"data.train_files={tmp_path / 'broken.parquet'}", "data.on_bad_row=stop")
    assert main(words) == 2
    assert "broken.parquet:0" in capsys.readouterr().err


def test_a_finished_run_is_not_written_over(inputs, tmp_path, capsys):
    run(inputs, tmp_path, "trainer.max_steps=1")
    assert main(settings(inputs, tmp_path, "trainer.max_steps=1")) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_resume_names_what_has_changed_and_refuses_what_cannot_be(inputs, tmp_path, capsys):
    run(inputs, tmp_path / "a", "trainer.max_steps=2", "trainer.save_freq=1")
    first, last = list_checkpoints(tmp_path / "a")
    run(inputs, tmp_path / "b", "trainer.max_steps=1")

    def refusal(run_dir, *extra):
        assert main(settings(inputs, run_dir, *extra)) == 2
        return capsys.readouterr().err.strip()

    from_first = f"trainer.load_checkpoint_path={first}"
    assert "global_step_2 is later than global_step_1" in refusal(tmp_path / "a", from_first)
    assert "already holds another run" in refusal(tmp_path / "b", from_first)
    frozen = ["trainer.load_checkpoint_path=latest", "worker.actor.model.freeze_vision_tower=true"]
    assert "restore worker.actor.model.freeze_vision_tower" in refusal(tmp_path / "a", *frozen)
    capsys.readouterr()
    summary = run(inputs, tmp_path / "a", f"trainer.load_checkpoint_path={last}", "worker.actor.optim.lr=1e-2")
    assert summary["steps"] == 4
    text = capsys.readouterr().out
    assert "changed since global_step_2: worker.actor.optim.lr was 0.001, is 0.01\n" in text
    assert text.count("changed since") == 1


def test_ctrl_c_is_one_line(inputs, tmp_path, capsys, monkeypatch):
    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr("diva_engine.train.Trainer.run", interrupted)
    assert main(settings(inputs, tmp_path)) == 130
    assert capsys.readouterr().err.startswith("stopped; ")


def test_list_and_settings_are_printed(capsys):
    assert main(["--list"]) == 0
    assert main(["--settings"]) == 0
    text = capsys.readouterr().out
    assert "diva" in text
    assert "worker.rollout.n=8" in text


def damaged(source, folder):
    """The questions, the first picture's header whole and its pixels not: it passes the check at the start."""
    rows = pq.read_table(source).to_pylist()
    rows[0]["images"][0]["bytes"] = rows[0]["images"][0]["bytes"][:-2000]
    pq.write_table(pa.Table.from_pylist(rows), folder / "damaged.parquet")
    return folder / "damaged.parquet"


def test_a_prompt_that_breaks_in_mid_run_is_skipped_and_named(inputs, tmp_path):
    run_dir = tmp_path / "run"
    questions = damaged(inputs / "train.parquet", tmp_path)
    words = [f"data.train_files={questions}", "data.rollout_batch_size=6", "trainer.max_steps=1"]
    summary = run(inputs, run_dir, *words)
    assert summary["responses"] == 5 * 4
    (line,) = (run_dir / "skipped_prompts.txt").read_text().splitlines()
    assert line.startswith("step 1: original variant of q0: ")
    assert "damaged.parquet:0" in line


def test_a_held_out_question_that_cannot_be_posed_is_named_too(inputs, tmp_path):
    run_dir = tmp_path / "run"
    run(inputs, run_dir, f"data.val_files={damaged(inputs / 'val.parquet', tmp_path)}", "trainer.max_steps=1")
    lines = (run_dir / "skipped_prompts.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["validation 0", "validation 1"]
    checks = [row for row in rows_of(run_dir) if "val/accuracy" in row]
    assert [row["val/skipped_prompts"] for row in checks] == [1.0, 1.0]
