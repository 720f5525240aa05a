"""Two ranks, stopped and resumed by new processes, end as two ranks that ran through: bit for bit."""

import itertools
import json
import os
import signal
import time

import pytest

from diva_engine.distributed import current_world
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.checkpoint_files import check
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.signals import Stopped
from python_tests.outcomes import outcome_of
from python_tests.ranks import on_ranks, train_each
from python_tests.small_runs import small_settings, write_inputs

CHOSEN = ["algorithm=diva", "worker.actor.model.torch_dtype=bfloat16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_inputs(folder, num_val=3, vocab_size=265)  # 265 does not halve
    on_ranks(2, begin, folder)
    on_ranks(2, train_each, [settings(folder, run, "trainer.load_checkpoint_path=latest") for run in RESUMED])
    return folder


RESUMED = ("stopped after two", "signalled")


def begin(folder):
    """On each rank: the whole run, the half of one, and one that a signal to the second rank alone stops."""
    train_each([settings(folder, "whole"), settings(folder, "stopped after two", "trainer.max_steps=2")])
    collect, calls = Collector.collect, itertools.count(1)

    def signalled(*args):
        if next(calls) == 3 and current_world().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # for the thread that listens
        return collect(*args)

    Collector.collect = signalled
    with pytest.raises(Stopped, match=r"stopped by SIGTERM after step 2; .*global_step_2 holds the run"):
        train_each([settings(folder, "signalled")])


def settings(folder, run, *extra):
    own = [
        "data.rollout_batch_size=3",
        "trainer.val_freq=2",
        "trainer.save_freq=2",
    ]
    return small_settings(folder, folder / run, *own, *CHOSEN, *extra)


@pytest.mark.parametrize("run", RESUMED)
def test_two_steps_and_two_more_equal_four_on_two_ranks(folder, run):
    whole, parts = outcome_of(folder / "whole"), outcome_of(folder / run)
    for part, found in whole.items():
        assert parts[part] == found, part


def test_each_rank_writes_its_share_and_seals_it(folder):
    newest = list_checkpoints(folder / "whole")[-1]
    manifest = check(newest)
    assert manifest["num_ranks"] == 2
    sizes = {file: seal["bytes"] for file, seal in manifest["files"].items() if file.startswith("state/")}
    assert {file[:17] for file in sizes} == {"state/shard-00001", "state/shard-00002"}
    assert max(sizes.values()) < 1.2 * min(sizes.values())
    settings = json.loads((newest / "policy" / "config.json").read_text())
    assert {settings["dtype"], settings["text_config"]["dtype"]} == {"bfloat16"}, "the shards are float32"
