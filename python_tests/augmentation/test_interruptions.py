"""A run that is killed, a journal that is damaged, a disk that is full: nothing is lost, nothing asked twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from diva_engine.augmentation.journal import Journal, Outcome
from diva_engine.records import UserError
from python_tests.augmentation.server import answer_well

NUM_JOBS = 24


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_a_killed_run_goes_on_and_asks_again_only_what_was_in_flight(place, end):
    async def slow(asked):
        await asyncio.sleep(0.1)
        return await answer_well(asked)

    place.server.behaviour = slow
    process = place.start("--concurrency", "3")
    wait_for(lambda: len(place.server.asked) >= 10, process)
    os.kill(process.pid, end)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if end == signal.SIGKILL else 130)
    assert end == signal.SIGKILL or "stopped; the same command goes on from here" in said
    assert "Traceback" not in said
    assert not place.output.exists()
    assert not list(place.folder.glob("*.tmp"))
    done_before = len(place.journal()) - 1
    assert done_before >= 4
    assert place.run() == 0
    counts = place.server.counts()
    assert len(counts) == NUM_JOBS, "no row is lost"
    assert max(counts.values()) <= 2
    assert sum(counts.values()) - NUM_JOBS <= 3, "only what was in flight is asked twice"
    assert [row["n"] for row in place.rows()] == list(range(12))
    assert all(len(row["paraphrases"]) == 2 and len(row["steps"]) == 3 for row in place.rows())


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends_whole(place):
    async def slow(asked):
        await asyncio.sleep(0.03)
        return await answer_well(asked)

    place.server.behaviour = slow
    kills = 0
    for goal in (3, 8, 13, 18):
        process = place.start("--concurrency", "2")
        wait_for(lambda: len(place.server.asked) >= goal + 2 * kills, process)  # noqa: B023
        process.kill()
        process.communicate(timeout=60)
        kills += 1
    assert place.run() == 0
    counts = place.server.counts()
    assert len(counts) == NUM_JOBS
    assert sum(counts.values()) - NUM_JOBS <= 2 * kills
    assert all(len(row["paraphrases"]) == 2 and len(row["steps"]) == 3 for row in place.rows())


def test_a_torn_last_line_is_cut_off_and_damage_costs_its_line_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    outcomes = [Outcome(row, "steps", "d", accepted=("a",)) for row in range(3)]
    journal = Journal(path, {"model": "m"})
    for outcome in outcomes:
        journal.append(outcome)
    journal.close()
    whole = path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path, {"model": "m"})
        complete = whole[:length].count(b"\n") - 1
        assert journal.outcomes == outcomes[:complete]
        journal.append(outcomes[complete])
        journal.close()
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: complete + 2])
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"\0\xff\n" + lines[3] + b'{"row": 1}\n')
    journal = Journal(path, {"model": "m"})
    assert (journal.outcomes, journal.damaged_lines) == ([outcomes[0], outcomes[2]], 2)
    with pytest.raises(UserError, match="is in use by another process"):
        Journal(path, {"model": "m"})
    journal.close()


def test_a_full_disk_is_said_in_one_line(tmp_path):
    """/dev/full takes nothing."""
    journal = Journal(tmp_path / "b.journal.jsonl", {"model": "m"})
    journal.close()
    with open("/dev/full", "ab", buffering=0) as full:
        journal._file = full
        with pytest.raises(
            UserError, match=r"b.journal.jsonl cannot be written \(No space left on device\); make room"
        ):
            journal.append(Outcome(0, "steps", "d"))


class FullDisk:
    """`os` as the output's writer sees it, on a disk that takes no more."""

    replace = os.replace

    def fsync(self, number):
        raise OSError(28, "No space left on device")


def test_an_output_that_cannot_be_written_leaves_the_old_one_and_the_journal(place, monkeypatch, capsys):
    place.output.write_text("the old one")
    with monkeypatch.context() as patch:
        patch.setattr("diva_engine.augmentation.output.os", FullDisk())
        assert place.run() == 2
    assert "b.jsonl cannot be written (No space left on device); the journal is kept" in capsys.readouterr().err
    assert place.output.read_text() == "the old one"
    assert not list(place.folder.glob("*.tmp"))
    assert place.run() == 0
    assert set(place.server.counts().values()) == {1}
    assert len(place.rows()) == 12
