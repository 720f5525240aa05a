"""A status file is whole at every moment; it names phase, rank, and of several ranks the one waited for."""

import json
import threading
import time

import pytest

from diva_engine.distributed import World
from diva_engine.trainer.heartbeat import FIRST_LINE_S, Heartbeat
from diva_engine.trainer.ranks_seen import slowest_of
from diva_engine.trainer.stopwatch import Stopwatch


def wait_for(path, is_wanted, limit_s=5.0):
    """The first status in the file that is wanted."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if path.exists() and is_wanted(status := json.loads(path.read_text())):
            return status
        time.sleep(0.01)
    raise AssertionError(f"{path} never was as wanted: {path.read_text() if path.exists() else 'no file'}")


def test_the_status_names_the_innermost_phase_and_its_time(tmp_path):
    heartbeat = Heartbeat(tmp_path, 10, World(), interval_s=0.02)
    stopwatch = Stopwatch(heartbeat)
    with heartbeat.running():
        with stopwatch.phase("step"), stopwatch.phase("rollout"):
            status = wait_for(tmp_path / "status.json", lambda s: s["phase"] == "rollout" and s["in_phase_s"] > 0.1)
            assert (status["state"], status["rank"], status["step"], status["num_steps"]) == ("running", 0, 0, 10)
            assert status["eta_s"] is None
            assert status["in_phase_s"] < 5.0
        heartbeat.advance(1)
        with stopwatch.phase("saving"):
            status = wait_for(tmp_path / "status.json", lambda s: s["phase"] == "saving")
            assert (status["step"], status["phases_begun"]) == (1, 3)
            assert status["eta_s"] == pytest.approx(9 * status["last_step_s"])
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["phase"]) == ("finished", "between phases")
    assert not list(tmp_path.glob("*.tmp"))
    assert stopwatch.wall_s["rollout"] >= 0.1


def test_a_run_that_breaks_says_so(tmp_path):
    heartbeat = Heartbeat(tmp_path, 10, World())
    with pytest.raises(ValueError, match="broken"), heartbeat.running(), heartbeat.phase("update"):
        raise ValueError("broken")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_no_reader_ever_sees_a_part_of_the_file(tmp_path):
    heartbeat = Heartbeat(tmp_path, 10, World(), interval_s=0.0005)
    with heartbeat.running():
        wait_for(tmp_path / "status.json", lambda s: True)
        seen = set()
        while len(seen) < 50:
            seen.add(json.loads((tmp_path / "status.json").read_text())["updated_at_s"])


def test_a_disk_that_takes_nothing_costs_the_status_only(tmp_path):
    (tmp_path / "file").write_text("")
    heartbeat = Heartbeat(tmp_path / "file", 10, World(), interval_s=0.001)
    with heartbeat.running(), heartbeat.phase("rollout"):
        time.sleep(0.05)


RANKS = {
    "the one still in an earlier phase": ([(0, 7, 9.0), (1, 6, 2.0), (2, 7, 8.0)], 1),
    "all in one phase: the longest": ([(0, 7, 1.0), (1, 7, 3.0)], 1),
    "alone": ([(0, 3, 1.0)], 0),
}


@pytest.mark.parametrize(("entries", "expected"), RANKS.values(), ids=RANKS)
def test_the_slowest_rank_is_the_one_that_is_waited_for(entries, expected):
    names = ("rank", "phases_begun", "in_phase_s")
    assert slowest_of([dict(zip(names, entry, strict=True)) for entry in entries])["rank"] == expected


def test_of_two_ranks_the_slower_is_named(tmp_path):
    first, second = (Heartbeat(tmp_path, 10, World(rank, 2), interval_s=0.02) for rank in (0, 1))
    with first.running(), second.running(), second.phase("rollout"):
        with first.phase("rollout"):
            pass
        with first.phase("update"):
            path = tmp_path / "status.json"
            status = wait_for(path, lambda s: s.get("slowest_rank") == 1 and s["ranks"][1]["in_phase_s"] > 0.1)
            assert [entry["phase"] for entry in status["ranks"]] == ["update", "rollout"]
            assert all(entry["silent_s"] < 5.0 for entry in status["ranks"])
            assert first.words().endswith("slowest rank 1: rollout 0 s")
    assert json.loads((tmp_path / "status" / "rank_1.json").read_text())["state"] == "finished"


def test_a_phase_that_lasts_gets_a_line_each_time_it_has_doubled(tmp_path):
    told = []
    heartbeat = Heartbeat(tmp_path, 100, World(), tell=told.append)
    with heartbeat.phase("rollout"):
        for seconds in (1.0, FIRST_LINE_S - 1, FIRST_LINE_S, 70.0, 119.0, 121.0, 200.0, 243.0):
            heartbeat._tell_if_long(seconds)
        assert len(told) == 3
        heartbeat._tell_if_long(0.5)
        heartbeat._tell_if_long(61.0)
    assert len(told) == 4
    assert told[0] == "step 1/100, rank 0: rollout 0 s"
