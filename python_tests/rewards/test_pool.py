"""Worker processes: order, hard limits, restart, and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diva_engine.rewards.pool import RewardError, WorkerPool

SLOW = ["equal", "10^{10^{10}}", "5"]
RIGHT = ["equal", r"2\sqrt{3}", r"\sqrt{12}"]
WRONG = ["equal", "x+1", "x+2"]


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(("verifier",), time_limit_s=1.5, batch_time_limit_s=20.0, num_workers=2)
    yield made
    made.close()


def processes(pool: WorkerPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_outcomes_keep_the_order_of_the_tasks(pool: WorkerPool) -> None:
    tasks = [["equal", str(i), str(i + i % 2)] for i in range(40)]
    assert [outcome.value for outcome in pool.run(tasks)] == [i % 2 == 0 for i in range(40)]


def test_workers_start_with_the_first_call_and_stay(pool: WorkerPool) -> None:
    assert processes(pool) == []
    assert pool.run([]) == []
    assert processes(pool) == []
    pool.run([RIGHT, WRONG])
    first = processes(pool)
    pool.run([RIGHT, WRONG])
    assert processes(pool) == first


def test_a_task_out_of_time_costs_only_itself(pool: WorkerPool) -> None:
    start = time.monotonic()
    outcomes = pool.run([RIGHT, SLOW, WRONG, SLOW, RIGHT])
    assert [(outcome.value, outcome.failure) for outcome in outcomes] == [
        (True, ""), (None, "timeout"), (False, ""), (None, "timeout"), (True, ""),
    ]  # fmt: skip
    assert outcomes[1].detail == "no result within 1.5 s"
    assert time.monotonic() - start < 15.0


def test_a_call_ends_at_its_own_limit_however_many_tasks_hang() -> None:
    pool = WorkerPool(("verifier",), time_limit_s=1.0, batch_time_limit_s=3.0, num_workers=2)
    pool.run([RIGHT])
    start = time.monotonic()
    outcomes = pool.run([SLOW] * 100)
    assert time.monotonic() - start < 6.0
    assert {outcome.failure for outcome in outcomes} == {"timeout"}
    assert pool.run([RIGHT])[0].value is True
    pool.close()


def test_a_worker_killed_from_outside_is_replaced(pool: WorkerPool) -> None:
    pool.run([RIGHT, WRONG])
    for pid in processes(pool):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert [outcome.value for outcome in pool.run([RIGHT, WRONG])] == [True, False]


def test_a_worker_killed_in_the_middle_is_named(pool: WorkerPool) -> None:
    pool.run([RIGHT])
    (pid,) = processes(pool)
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    (outcome,) = pool.run([SLOW])
    assert outcome.failure == "died"
    assert outcome.detail.startswith("its worker process ended with signal 9")


def test_an_error_in_a_task_is_its_outcome(pool: WorkerPool) -> None:
    outcomes = pool.run([["match", "(", "x"], RIGHT, ["no such operation"]])
    assert [outcome.failure for outcome in outcomes] == ["raised", "", "raised"]
    assert outcomes[0].detail.startswith(("error:", "PatternError:"))


def test_memory_beyond_the_limit_ends_the_task_not_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text("def main(items):\n    return [len(bytearray(2 << 30)) for _ in items]\n")
    pool = WorkerPool(("file", str(tmp_path / "greedy.py"), "main", {}, "batch"), memory_limit_mb=512, num_workers=1)
    (outcome,) = pool.run([[{}]])
    assert (outcome.failure, outcome.detail) == ("raised", "MemoryError:  (line 2)")
    pool.close()


def test_a_limit_too_small_to_start_in_says_so() -> None:
    pool = WorkerPool(("verifier",), memory_limit_mb=48)
    with pytest.raises(RewardError, match="the answer checker cannot be loaded: "):
        pool.run([RIGHT])
    pool.close()


def test_calls_from_several_threads_do_not_mix(pool: WorkerPool) -> None:
    found: dict[int, list[bool]] = {}

    def call(number: int) -> None:
        tasks = [["equal", str(i), str(i + number % 2)] for i in range(5)]
        found[number] = [outcome.value for outcome in pool.run(tasks)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number % 2 == 0] * 5 for number in range(4)}


def test_close_ends_the_workers_and_a_later_call_starts_them(pool: WorkerPool) -> None:
    pool.run([RIGHT, WRONG])
    pids = processes(pool)
    pool.close()
    pool.close()
    assert not any(is_alive(pid) for pid in pids)
    assert pool.run([RIGHT])[0].value is True


ENDINGS = {
    "the interpreter ends": "",
    "Ctrl-C during a call": "import os, signal, threading\n"
    "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
    "pool.run([['equal', '10^{10^{10}}', '5']] * 4)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_no_worker_outlives_the_trainer(ending: str) -> None:
    program = textwrap.dedent("""
        from diva_engine.rewards.pool import WorkerPool
        pool = WorkerPool(("verifier",), time_limit_s=30.0)
        pool.run([["equal", "x", "y"]] * 2)
        print(*[worker.process.pid for worker in pool._workers], flush=True)
    """)
    done = subprocess.run([sys.executable, "-c", program + ending], capture_output=True, text=True, timeout=60)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5.0
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)
