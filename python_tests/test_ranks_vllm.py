"""Two ranks with vLLM do what one does: an engine each, or one engine together, fed from FSDP2 shards."""

import faulthandler
import json

import pytest

from diva_engine.distributed import current_world
from diva_engine.policy.model import load_policy
from diva_engine.records import GenerationJob, Sampling, UserError
from python_tests.prompts import make_prompt
from python_tests.questions import CHANCE_REWARD
from python_tests.ranks import on_ranks, train_each_noting_tokens
from python_tests.rollout.engines import MAX_MODEL_LEN, open_engine
from python_tests.small_runs import small_settings, write_inputs

pytestmark = pytest.mark.vllm

RUNS = {
    "an engine a rank": [],
    "one engine together": ["worker.rollout.tensor_parallel_size=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_inputs(folder, reward=CHANCE_REWARD, hidden_size=128)
    on_ranks(1, train_each_noting_tokens, [settings(folder, "one rank")])
    return folder


def settings(folder, run, *extra):
    own = [
        "data.rollout_batch_size=3",
        "data.max_response_length=12",
        "worker.rollout.engine=vllm",
        "worker.rollout.kv_cache_memory_bytes=67108864",
        "worker.actor.optim.lr=1e-4",
        "trainer.rollouts_to_log=1000",
        "trainer.max_steps=3",
    ]
    return small_settings(folder, folder / run, *own, *extra)


def rows_of(run_dir, name):
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def answers_of(run_dir):
    return sorted((row["step"], row["question"], row["text"]) for row in rows_of(run_dir, "rollouts.jsonl"))


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_answer_and_learn_as_one(folder, name):
    on_ranks(2, train_each_noting_tokens, [settings(folder, name, *RUNS[name])])
    assert len(answers_of(folder / name)) == 3 * 3 * 4
    assert answers_of(folder / name) == answers_of(folder / "one rank")
    assert rows_of(folder / name, "tokens.jsonl") == rows_of(folder / "one rank", "tokens.jsonl")
    one, two = (
        [row for row in rows_of(folder / run, "metrics.jsonl") if "actor/loss" in row] for run in ("one rank", name)
    )
    for metric in ("actor/loss", "actor/grad_norm"):  # of the later steps: with the weights of the earlier ones
        assert [row[metric] for row in two] == pytest.approx([row[metric] for row in one], abs=1e-5)
    assert all(row["sync/logprob_gap_max"] < 1e-4 for row in [*one, *two])


def ask_too_much_on_one_rank(folder):
    faulthandler.dump_traceback_later(180, exit=True)  # a rank that waits is one that fails
    policy = load_policy(folder)
    engine = open_engine("vllm", policy, tensor_parallel_size=2)
    short, long = (make_prompt(policy.model, policy.processor, "2" * length) for length in (5, MAX_MODEL_LEN))
    rank, sampling = current_world().rank, Sampling(max_tokens=4)
    with pytest.raises(UserError, match="does not fit worker"):
        engine.generate([GenerationJob(long if rank else short, (1,))], sampling)
    [[rollout]] = engine.generate([GenerationJob(short, (1 + rank,))], sampling)
    assert 0 < len(rollout.token_ids) <= 4
    faulthandler.cancel_dump_traceback_later()


def test_what_one_rank_refuses_both_do(folder):
    on_ranks(2, ask_too_much_on_one_rank, folder / "model")
