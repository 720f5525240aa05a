"""Two ranks, real processes over gloo: an engine that dies on one of them, and one of them killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from diva_engine.rollout.native_engine import NativeEngine
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.rank_watch import RANK_LOST_EXIT_CODE
from python_tests.ranks import on_ranks, train_each
from python_tests.small_runs import small_settings, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def settings(inputs, run_dir, *extra):
    return small_settings(inputs, run_dir, "trainer.max_steps=2", "trainer.save_freq=1", *extra)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_with_a_dying_engine(words):
    """The native engine of rank 1 dies at its second decoding step."""
    decode, count = NativeEngine._record, 0

    def record(self, answers, tokens, logprobs):
        nonlocal count
        count += 1
        if count == 2 and os.environ["RANK"] == "1":
            raise RuntimeError("the engine's process is gone")
        return decode(self, answers, tokens, logprobs)

    NativeEngine._record = record
    train_each([words])


@pytest.mark.slow
def test_an_engine_that_dies_on_one_rank_is_restarted_by_all(inputs, tmp_path):
    on_ranks(2, train_each, [settings(inputs, tmp_path / "whole")])
    on_ranks(2, train_with_a_dying_engine, settings(inputs, tmp_path / "hurt"))
    whole, hurt = (
        [
            {name: value for name, value in row.items() if not name.startswith(("time/", "throughput/"))}
            for row in rows_of(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("whole", "hurt")
    )
    restarts = [[row.pop("rollout/engine_restarts") for row in rows] for rows in (whole, hurt)]
    assert restarts == [[0.0, 0.0], [1.0, 0.0]]
    assert whole == hurt
    (row,) = rows_of(tmp_path / "hurt" / "faults.jsonl")
    assert "RuntimeError: the engine's process is gone on rank 1" in row["line"]
    there = [row["fault"] for row in rows_of(tmp_path / "hurt" / "faults_rank1.jsonl")]
    assert there == ["traceback", "rollout/engine_restarts"]


def test_a_killed_rank_ends_the_other_and_the_checkpoints_stay(inputs, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = settings(inputs, tmp_path / "run", "trainer.max_steps=1000", "trainer.rank_timeout_s=4")
    ranks = []
    for rank in (0, 1):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-m", "diva_engine.train", *words]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        deadline = time.monotonic() + 120
        status_file = tmp_path / "run" / "status.json"  # its thread may lag behind on a busy machine
        while len(list_checkpoints(tmp_path / "run")) < 2 or not status_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        status = json.loads(status_file.read_text())
        assert [entry["rank"] for entry in status["ranks"]] == [0, 1]
        ranks[1].send_signal(signal.SIGKILL)
        start = time.monotonic()
        _, said = ranks[0].communicate(timeout=90)
        assert ranks[0].returncode == RANK_LOST_EXIT_CODE, said
        assert "error: rank 1 is lost: it has given no sign for" in said
        assert time.monotonic() - start < 30, "4 s are the stated time; the rest is a busy machine's"
        assert len(list_checkpoints(tmp_path / "run")) >= 2
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
