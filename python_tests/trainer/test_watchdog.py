"""A phase beyond its bound is reported with the stacks of all threads, by a thread or, where none can run, without."""

import re
import subprocess
import sys
import textwrap
import time

import pytest

from diva_engine.trainer.watchdog import Watchdog

PROGRAM = """
    import ctypes, sys, threading, time
    from pathlib import Path
    from diva_engine.distributed import World
    from diva_engine.trainer.heartbeat import Heartbeat
    from diva_engine.trainer.watchdog import Watchdog

    folder = Path(sys.argv[1])
    watchdog = Watchdog(folder / "stacks.txt", float(sys.argv[4]), stops=sys.argv[3] == "stop")
    heartbeat = Heartbeat(folder, 10, World(), watchdog=watchdog)

    def sleeps_long():
        time.sleep(1.6)

    def holds_the_lock():
        ctypes.PyDLL(None).usleep(2_000_000)

    def gets_on():
        for _ in range(10):
            time.sleep(0.3)
            heartbeat.restart_clock()

    def waits_elsewhere():
        threading.Event().wait(30)

    threading.Thread(target=waits_elsewhere, daemon=True).start()
    with heartbeat.running():
        time.sleep(0.3)
        with heartbeat.phase("rollout"):
            globals()[sys.argv[2]]()
    print("went on")
"""


def run(folder, deed, on_limit="report", limit_s=0.5):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), deed, on_limit, str(limit_s)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_long_phase_has_the_stacks_of_all_threads_written_and_goes_on(tmp_path):
    done = run(tmp_path, "sleeps_long")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "went on"
    assert re.match(
        r"rollout has taken \d s, longer than trainer.phase_limit_s=0.5; the stacks .*stacks\.txt", done.stdout
    )
    for stacks in ((tmp_path / "stacks.txt").read_text(), done.stderr):
        assert "rollout has taken" in stacks
        assert "in sleeps_long" in stacks
        assert "in waits_elsewhere" in stacks


def test_a_phase_that_holds_the_interpreters_lock_is_reported_too(tmp_path):
    done = run(tmp_path, "holds_the_lock")
    assert done.returncode == 0
    stacks = (tmp_path / "stacks.txt").read_text()
    assert stacks.startswith("Timeout (0:00:00.500000)!")
    assert "in holds_the_lock" in stacks


@pytest.mark.parametrize("deed", ["sleeps_long", "holds_the_lock"])
def test_a_run_told_to_stop_ends(tmp_path, deed):
    start = time.monotonic()
    done = run(tmp_path, deed, "stop")
    assert done.returncode == (75 if deed == "sleeps_long" else 1)
    assert "went on" not in done.stdout
    assert f"in {deed}" in (tmp_path / "stacks.txt").read_text()
    assert time.monotonic() - start < 30


def test_a_phase_that_gets_on_is_left_alone_and_leaves_no_file(tmp_path):
    done = run(tmp_path, "gets_on", limit_s=2.0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
    assert not (tmp_path / "stacks.txt").exists()


def test_reports_come_at_the_bound_and_at_each_doubling(tmp_path):
    told = []
    watchdog = Watchdog(tmp_path / "stacks.txt", 10.0, tell=told.append)
    for seconds in (1, 9, 10, 11, 19, 20, 39, 41, 3, 10):
        watchdog.look("update", seconds)
    watchdog.close()
    assert [line.split(",")[0] for line in told] == [f"update has taken {seconds} s" for seconds in (10, 20, 41, 10)]
