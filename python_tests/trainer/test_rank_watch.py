"""A lost rank ends the others within the stated time, by name; ranks that end well end nobody."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from diva_engine.trainer.rank_watch import RANK_LOST_EXIT_CODE

TIMEOUT_S = 3.0
PROGRAM = """
    import os, sys, time
    import torch, torch.distributed as dist
    from diva_engine.records import UserError
    from diva_engine.trainer.rank_watch import watched_ranks

    deed, timeout_s = sys.argv[1], float(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    with watched_ranks(timeout_s):
        print("met", flush=True)
        if deed == "ends_early":
            time.sleep(0 if rank else 2 * timeout_s)
        if deed == "sleeps after failures":  # in the middle of its ends, as a trainer that closes its parts
            try:
                while True:
                    dist.all_reduce(torch.ones(10))
            finally:
                time.sleep(60)
        for step in range(0 if deed == "ends_early" else 10_000):
            if deed == "raises" and rank == 1 and step == 5:
                raise UserError("the picture of row 7 cannot be read")
            if deed == "breaks" and rank == 1 and step == 5:
                raise ZeroDivisionError("in the reward")
            dist.all_reduce(torch.ones(10))
            time.sleep(0.02)
"""


@pytest.fixture
def ranks():
    started = []

    def start(deed, size=2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        for rank in range(size):
            place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, "-c", textwrap.dedent(PROGRAM), deed, str(TIMEOUT_S)]
            environment = os.environ | {name: str(value) for name, value in place.items()}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        for process in started:
            assert process.stdout.readline() == "met\n"
        time.sleep(1.0)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end_of(process, limit_s=60.0):
    """Exit code, what it said, and how long that took."""
    start = time.monotonic()
    _, said = process.communicate(timeout=limit_s)
    return process.returncode, said, time.monotonic() - start


LOST = {
    "killed": (signal.SIGKILL, 1, "rank 1 is lost: it has given no sign for"),
    "frozen": (signal.SIGSTOP, 1, "rank 1 is lost: it has given no sign for"),
    # Told by the store that is gone, or, where the store's end is noticed late, by rank 0's silence.
    "the store's rank killed": (signal.SIGKILL, 0, "rank 0"),
    "the store's rank frozen": (signal.SIGSTOP, 0, "rank 0"),
}


@pytest.mark.parametrize(("number", "rank", "words"), LOST.values(), ids=LOST)
def test_a_lost_rank_ends_the_other_within_the_time_by_name(ranks, number, rank, words):
    started = ranks("works")
    started[rank].send_signal(number)
    code, said, took_s = end_of(started[1 - rank])
    assert code == RANK_LOST_EXIT_CODE, said
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {words}")
    assert f"(trainer.rank_timeout_s={TIMEOUT_S:g}); rank {1 - rank} stops. trainer.load_checkpoint_path=latest" in line
    assert took_s < 2 * TIMEOUT_S + 10.0, "the stated time, and what a busy machine takes beside"


@pytest.mark.parametrize("lost", [0, 1])
def test_sigterm_to_the_one_that_is_left_lets_it_name_the_other(ranks, lost):
    """torchrun sends it a tenth of a second after a rank has died."""
    started = ranks("sleeps after failures")
    started[lost].send_signal(signal.SIGKILL)
    time.sleep(0.1)
    started[1 - lost].send_signal(signal.SIGTERM)
    code, said, took_s = end_of(started[1 - lost])
    assert (code, f"rank {lost}" in said.partition("error: ")[2]) == (RANK_LOST_EXIT_CODE, True), said
    assert said.count("error: ") == 1
    assert took_s < 2 * TIMEOUT_S + 10.0


def test_sigterm_to_all_ends_all_and_names_none(ranks):
    started = ranks("works")
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        code, said, _ = end_of(process)
        assert (code, "error: " in said) == (128 + signal.SIGTERM, False), said


def test_sigterm_to_one_ends_it_and_the_other_names_it(ranks):
    started = ranks("works")
    started[0].send_signal(signal.SIGTERM)
    (code, said, _), (other, named, _) = map(end_of, started)
    assert (code, "error: " in said) == (128 + signal.SIGTERM, False), said
    assert (other, "error: rank 0" in named) == (RANK_LOST_EXIT_CODE, True), named


def test_of_three_ranks_both_others_end(ranks):
    started = ranks("works", size=3)
    started[2].send_signal(signal.SIGKILL)
    for process in started[:2]:
        code, said, _ = end_of(process)
        assert code == RANK_LOST_EXIT_CODE
        assert "error: rank 2 is lost" in said


FAILED = {
    "refuses a row": ("raises", "rank 1 failed: the picture of row 7 cannot be read"),
    "breaks": ("breaks", "rank 1 failed: ZeroDivisionError: in the reward"),
}


@pytest.mark.parametrize(("deed", "words"), FAILED.values(), ids=FAILED)
def test_a_rank_that_fails_alone_is_named_with_its_reason(ranks, deed, words):
    started = ranks(deed)
    code, said, took_s = end_of(started[0])
    assert (code, f"error: {words}" in said) == (RANK_LOST_EXIT_CODE, True), said
    assert took_s < 2 * TIMEOUT_S + 10.0


def test_a_rank_that_is_done_before_the_others_ends_nobody(ranks):
    started = ranks("ends_early")
    assert [end_of(process)[0] for process in started] == [0, 0]
