"""The training command, whole: a parquet and a model folder in, a run folder out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText

from diva_engine.algorithm.recipes import RECIPES
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree
from diva_engine.train import main
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.metric_names import describe
from diva_engine.trainer.reference import frozen_logprobs
from python_tests.outcomes import outcome_of, rows_of, without_times
from python_tests.prompts import make_prompt
from python_tests.questions import CHANCE_REWARD
from python_tests.small_runs import choose, small_run, small_settings, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_val=4)


PROMPTS = {"diva": 2, "hint_grpo": 3}  # posed for a question


@pytest.mark.parametrize("algorithm", RECIPES)
def test_a_run_leaves_metrics_rollouts_summary_and_a_model(inputs, tmp_path, algorithm):
    summary = small_run(inputs, tmp_path, *choose(algorithm), "trainer.max_steps=2")
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
    small_run(inputs, tmp_path, "trainer.max_steps=2")
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
        small_run(inputs, tmp_path / name, f"algorithm={algorithm}", "seed=5")
    small_run(inputs, tmp_path / "c", f"algorithm={algorithm}", "seed=6")
    first, second, other = (without_times(rows_of(tmp_path / name)) for name in "abc")
    assert first == second
    assert first != other
    assert rows_of(tmp_path / "a", "rollouts.jsonl") == rows_of(tmp_path / "b", "rollouts.jsonl")


PREFETCHED = {name: choose(name) for name in ("grpo", "diva", "dapo", "rescue")} | {
    "solved questions perturbed": [*choose("rescue"), "rescue.perturb_solved=true"],
    "epochs that overlap": [*choose("diva"), "data.rollout_batch_size=4"],
}


@pytest.mark.parametrize("extra", PREFETCHED.values(), ids=PREFETCHED)
def test_prefetching_changes_nothing(inputs, tmp_path, extra):
    for name, size in (("on", 64), ("off", 0)):
        small_run(inputs, tmp_path / name, *extra, f"data.prefetch={size}", "trainer.rollouts_to_log=100")
    on, off = (rows_of(tmp_path / name) for name in ("on", "off"))
    assert without_times(on) == without_times(off)
    assert rows_of(tmp_path / "on", "rollouts.jsonl") == rows_of(tmp_path / "off", "rollouts.jsonl")
    assert max(row["throughput/prefetched"] for row in on if "reward/mean" in row) > 0
    assert not any("throughput/prefetched" in row for row in off)
    last = [list_checkpoints(tmp_path / name)[-1] / "policy" for name in ("on", "off")]
    weights = [load_policy(folder).model.state_dict() for folder in last]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


OVERLAPPED = {
    name: [*choose(algorithm), f"worker.reward.reward_type={kind}", f"worker.rollout.max_batch_rows={rows}"]
    for name, algorithm, kind, rows in [
        ("grpo", "grpo", "sequential", 3),
        ("grpo, one chunk", "grpo", "sequential", 512),
        ("rescue", "rescue", "sequential", 3),
        ("diva, scored as a batch", "diva", "batch", 3),
    ]
}


@pytest.mark.parametrize("extra", OVERLAPPED.values(), ids=OVERLAPPED)
def test_scoring_while_generating_changes_nothing(inputs, tmp_path, extra):
    (tmp_path / "reward.py").write_text(CHANCE_REWARD)
    extra = [*extra, f"worker.reward.reward_function={tmp_path / 'reward.py'}:score", "trainer.rollouts_to_log=100"]
    for name in ("true", "false"):
        small_run(inputs, tmp_path / name, *extra, "data.max_response_length=16", f"worker.reward.overlap={name}")
    on, off = (outcome_of(tmp_path / name) for name in ("true", "false"))
    assert on == off
    assert any(row.get("actor/grad_norm", 0) > 0 for row in on["metrics"]), "nothing was trained"


CALLED = """
def score(inputs, log):
    with open(log, "a") as file:
        print(len(inputs), file=file)
    return [{"overall": float(len(item["response"]) % 2), "accuracy": 0.0} for item in inputs]
"""


def test_a_reward_of_a_batch_is_called_once_a_stage(inputs, tmp_path):
    """Rescue with 2 questions and 4 rollouts each: a probe of 2 a question, then the other 4, none being right."""
    (tmp_path / "reward.py").write_text(CALLED)
    reward = [f"worker.reward.reward_function={tmp_path / 'reward.py'}:score",
              f"worker.reward.reward_function_kwargs={{log: {tmp_path / 'calls'}}}"]  # fmt: skip
    once = ["worker.rollout.max_batch_rows=1", "data.val_files=", "trainer.max_steps=2"]
    small_run(inputs, tmp_path / "run", *choose("rescue"), *reward, *once)
    assert (tmp_path / "calls").read_text().split() == ["4", "4"] * 2


EASYR1 = """
data: {{train_files: {0}/train.parquet, val_files: null, prompt_key: problem, answer_key: answer, image_key: images,
  rollout_batch_size: 4, mini_rollout_batch_size: null, max_response_length: 8, filter_overlong_prompts: true}}
algorithm: {{adv_estimator: grpo, disable_kl: true, online_filtering: false, weight_mode: weightafter1-5_zscore_norm,
  Adjust_Low_Reward_Local: true, Adjust_Low_Reward_Global: true}}
worker:
  actor: {{global_batch_size: 4, micro_batch_size_per_device_for_update: 1, padding_free: true,
    model: {{model_path: {0}/model, enable_gradient_checkpointing: false}}, optim: {{lr: 1.0e-3, strategy: adamw}},
    offload: {{offload_params: true}}}}
  rollout: {{n: 4, limit_images: 0, enforce_eager: false}}
  reward: {{reward_type: batch, reward_function: "{0}/reward.py:score"}}
trainer: {{total_epochs: 1, max_steps: null, logger: [file, swanlab], nnodes: 1, n_gpus_per_node: 8, val_freq: -1,
  save_freq: -1, save_limit: -1, Difficulty_Adaptation: true, Varient_Num: 1, save_checkpoint_path: {1}}}
"""


def test_a_file_of_diva_grpos_own_trains_as_it_is(inputs, tmp_path, capsys):
    (tmp_path / "theirs.yaml").write_text(EASYR1.format(inputs, tmp_path / "run"))
    assert main([f"config={tmp_path / 'theirs.yaml'}"]) == 0
    told = capsys.readouterr().out
    assert "DIVA-GRPO (trainer.Difficulty_Adaptation, trainer.Varient_Num, algorithm.weight_mode" in told
    steps = [row for row in rows_of(tmp_path / "run") if "reward/mean" in row]
    assert [row["step/rollouts"] for row in steps] == [2 * 2 * 4.0] * 3, "two questions a step: theirs counts variants"
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "preset: authors" in saved
    assert "offload_params: false" in saved


def test_dapo_draws_further_questions(inputs, tmp_path):
    """Answers of one token have an odd length: no group is live, so the search ends with the data."""
    small_run(inputs, tmp_path, "algorithm=dapo", "data.max_response_length=1", "trainer.max_steps=1")
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
    small_run(inputs, tmp_path, *choose(algorithm), reward, "trainer.max_steps=6", "worker.actor.optim.lr=1e-2")
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
    "attention of GPUs": (["worker.actor.model.attn_implementation=flex", "trainer.device=cpu"], "on CPUs; use sdpa"),
    "no such column": (["trainer.val_by=levl"], "did you mean level?"),
    "font that is none": (["data.font={inputs}/reward.py"], "give a .ttf or .otf file"),
    "no such logger": (["trainer.logger=[flie]"], "did you mean file?"),
    "no such metric": (["trainer.save_best=val/acuracy"], "did you mean val/accuracy?"),
    "metric of no file": (["trainer.save_best=val/accuracy", "data.val_files="], "give data.val_files"),
    "reward file missing": (["worker.reward.reward_function=nowhere.py:score"], "nowhere.py"),
    "run folder that cannot be made": (["trainer.save_checkpoint_path=/dev/null/run"], "cannot be made"),
    "checkpoint that is none": (["trainer.load_checkpoint_path={inputs}"], "it has no trainer.pt"),
    "nothing to resume": (["trainer.load_checkpoint_path=latest"], "holds no checkpoint"),
}


@pytest.mark.parametrize(("extra", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(inputs, tmp_path, capsys, extra, message):
    if extra == ["trainer.device=cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = small_settings(inputs, tmp_path / "run", *[word.format(inputs=inputs) for word in extra])
    assert main(words) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert message.format(inputs=inputs) in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_table_without_answers_and_a_broken_image_are_named(inputs, tmp_path, capsys):
    pq.write_table(pa.table({"problem": ["?"], "solved_by": ["x"]}), tmp_path / "no_answer.parquet")
    assert main(small_settings(inputs, tmp_path / "a", f"data.train_files={tmp_path / 'no_answer.parquet'}")) == 2
    assert "no_answer.parquet" in capsys.readouterr().err
    rows = [{"problem": "<image>?", "answer": "1", "images": [{"bytes": b"not an image", "path": None}]}]
    pq.write_table(pa.Table.from_pylist(rows * 3), tmp_path / "broken.parquet")
    words = small_settings(
        inputs, tmp_path / "b", f"data.train_files={tmp_path / 'broken.parquet'}", "data.on_bad_row=stop"
    )
    assert main(words) == 2
    assert "broken.parquet:0" in capsys.readouterr().err


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
    summary = small_run(inputs, run_dir, *words)
    assert summary["responses"] == 5 * 4
    (line,) = (run_dir / "skipped_prompts.txt").read_text().splitlines()
    assert line.startswith("step 1: original variant of q0: ")
    assert "damaged.parquet:0" in line


def test_a_held_out_question_that_cannot_be_posed_is_named_too(inputs, tmp_path):
    run_dir = tmp_path / "run"
    small_run(inputs, run_dir, f"data.val_files={damaged(inputs / 'val.parquet', tmp_path)}", "trainer.max_steps=1")
    lines = (run_dir / "skipped_prompts.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["validation 0", "validation 1"]
    checks = [row for row in rows_of(run_dir) if "val/accuracy" in row]
    assert [row["val/skipped_prompts"] for row in checks] == [1.0, 1.0]
