"""Four ranks in two groups of two, each with a copy of the weights between them, do what one rank does."""

import pytest

from diva_engine.export import main as export
from diva_engine.policy.model import load_policy
from diva_engine.records import UserError
from diva_engine.settings import load_config
from diva_engine.train import train
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.checkpoint_files import check
from python_tests.outcomes import assert_same, outcome_of
from python_tests.questions import CHANCE_REWARD
from python_tests.ranks import on_ranks, train_each_noting_tokens
from python_tests.small_runs import KL_IN_SEVERAL_STEPS, small_settings, write_inputs

RUNS = {
    "diva": ["algorithm=diva"],
    "kl as loss, several optimizer steps, trees split": KL_IN_SEVERAL_STEPS,
    "adapters": ["worker.actor.model.lora.rank=4", "worker.actor.optim.lr=1e-3"],
}
GROUPS, HALF = "worker.actor.fsdp.fsdp_size=2", "trainer.max_steps=2"
RESUMED = "trainer.load_checkpoint_path=latest"


def settings(folder, run, *extra):
    own = [
        "data.rollout_batch_size=3",  # a rank of the four has no question
        "worker.actor.optim.lr=1e-4",
        "trainer.rollouts_to_log=1000",
        "trainer.max_steps=3",
        "trainer.save_limit=0",
        "trainer.val_freq=2",
        "trainer.save_freq=2",
    ]
    return small_settings(folder, folder / run, *own, *extra)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("groups")
    write_inputs(folder, num_val=3, reward=CHANCE_REWARD)
    alone = [settings(folder, f"one/{name}", *words) for name, words in RUNS.items()]
    train_each_noting_tokens([*alone, settings(folder, "one then groups", "algorithm=diva", HALF)])
    grouped = [settings(folder, f"groups/{name}", GROUPS, *words) for name, words in RUNS.items()]
    for run in ("groups then one", "groups then groups", "groups then all"):
        grouped.append(settings(folder, run, "algorithm=diva", GROUPS, HALF))
    on_ranks(4, train_each_noting_tokens, grouped)
    resumed = [settings(folder, f"{run} then groups", "algorithm=diva", GROUPS, RESUMED) for run in ("one", "groups")]
    resumed.append(settings(folder, "groups then all", "algorithm=diva", RESUMED))
    on_ranks(4, train_each_noting_tokens, resumed)
    train_each_noting_tokens([settings(folder, "groups then one", "algorithm=diva", RESUMED)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_groups_are_one_rank(folder, name):
    assert_same(folder / "one" / name, folder / "groups" / name)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["one then groups", "groups then one", "groups then all"])
def test_a_run_goes_on_cut_otherwise(folder, run):
    assert_same(folder / "one" / "diva", folder / run)


@pytest.mark.slow
def test_groups_that_were_stopped_go_on_as_if_they_had_not_been(folder):
    whole, parts = outcome_of(folder / "groups" / "diva"), outcome_of(folder / "groups then groups")
    for part, found in whole.items():
        assert parts[part] == found, part


@pytest.mark.slow
def test_each_shard_is_written_once(folder):
    """Two ranks hold each; the file of one of them has it."""
    cut, alone = (list_checkpoints(folder / run / "diva")[-1] for run in ("groups", "one"))
    sizes = [
        sum(seal["bytes"] for file, seal in check(checkpoint)["files"].items() if file.startswith("state/"))
        for checkpoint in (cut, alone)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1), "four files' headers"
    assert check(cut)["num_ranks"] == 4


@pytest.mark.slow
def test_the_model_of_groups_is_taken_out(folder, tmp_path):
    checkpoint = list_checkpoints(folder / "groups" / "diva")[-1]
    assert export(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "model")]) == 0
    found, expected = (load_policy(path).model.state_dict() for path in (tmp_path / "model", checkpoint / "policy"))
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_groups_that_leave_ranks_over_are_refused(tmp_path):
    write_inputs(tmp_path)
    config = load_config(small_settings(tmp_path, tmp_path / "run", GROUPS))
    with pytest.raises(UserError, match=r"fsdp_size=2 does not divide the number of ranks, 1; take 1, or -1 to cut"):
        train(config)
    assert not (tmp_path / "run").exists()
