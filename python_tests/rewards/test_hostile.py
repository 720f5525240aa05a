"""Reward files that mean harm: each is scored as failed, the pool goes on at once, and nothing of them stays behind."""

from __future__ import annotations

import os
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from diva_engine.records import Problem
from diva_engine.rewards.reward import build_reward
from diva_engine.rewards.worker_process import MAX_REPLY_BYTES

PROBLEMS = [Problem(id=f"q{i}", text="?", answer="1") for i in range(4)]
FILE = """
    import json, os, signal, sys, threading, time
    SOCKET = int(sys.argv[1])

    def misbehave():
        {deed}

    def compute_score(items):
        if any(item["response"] == "BAD" for item in items):
            misbehave()
        return [1.0] * len(items)
"""
FORGED = '[{"overall": 1.0}, {"overall": 1.0}, {"overall": 1.0}, {"overall": 1.0}]'
DEEDS = {
    "kills its parent": "os.kill(os.getppid(), signal.SIGKILL); time.sleep(99)",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(99)",
    "ignores every signal": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 10, 12, 14, 15)]; time.sleep(99)",
    "aborts": "os.abort()",
    "closes all its files": "os.closerange(0, 100); time.sleep(99)",
    "sends half an answer": "os.write(SOCKET, b'{\"value\"'); time.sleep(99)",
    "sends an endless line": f"[os.write(SOCKET, b'x' * 65536) for _ in range({MAX_REPLY_BYTES // 65536 + 40})]",
    "sends no JSON": "os.write(SOCKET, b'\\xff\\xfe\\n')",
    "sends a list": "os.write(SOCKET, b'[1]\\n')",
    "sends a number as scores": "os.write(SOCKET, b'{\"value\": 5}\\n')",
    "sends too many scores": f"os.write(SOCKET, b'{{\"value\": {FORGED[:-1]}, 7]}}\\n')",
    "sends NaN": f"os.write(SOCKET, b'{{\"value\": {FORGED.replace('1.0', 'NaN')}}}\\n')",
    "sends a nested monster": "os.write(SOCKET, b'{\"value\": ' + b'[' * 100000 + b'\\n')",
    "starts a hundred processes": "[os.fork() or time.sleep(99) for _ in range(100)]; time.sleep(99)",
    "flees into another session": "os.fork() or (os.setsid(), os.fork() or time.sleep(99)); os._exit(3)",
}


def marked(mark: str) -> list[int]:
    """Processes that have the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes() and path.with_name("stat").read_text().split()[2] != "Z":
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_hostile_file_harms_nobody_but_itself(deed, tmp_path, monkeypatch):
    mark = f"HOSTILE={tmp_path}"
    monkeypatch.setenv("HOSTILE", str(tmp_path))
    path = tmp_path / "reward.py"
    path.write_text(textwrap.dedent(FILE).format(deed=deed))
    reward = build_reward(
        reward_function=f"{path}:compute_score", on_failure="score", failed_score=-2.0, time_limit_s=1.5,
        batch_time_limit_s=1.5,
    )  # fmt: skip
    start = time.monotonic()
    scores = [score.reward for score in reward(["a", "b", "BAD", "c"], PROBLEMS)]
    assert time.monotonic() - start < 20.0
    assert scores[2] == -2.0
    assert [score.reward for score in reward(["a", "b", "c", "d"], PROBLEMS)] == [1.0] * 4, "the pool goes on"
    counters = reward.take_counters()
    assert counters["timeouts"] + counters["errors"] == scores.count(-2.0)
    assert marked(mark)
    reward.close()
    deadline = time.monotonic() + 5.0
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marked(mark), "nothing that the file has started lives on"


SPEAKS_UNASKED = """
    import os, sys, time
    SOCKET = int(sys.argv[1])

    def compute_score(items):
        if any(item["response"] == "BAD" for item in items):
            os.write(SOCKET, b'{"value": 5}\\n')
        time.sleep(0.2)
        return [float(len(item["response"])) for item in items]
"""


def test_a_line_of_its_own_does_not_shift_the_answers(tmp_path):
    path = tmp_path / "reward.py"
    path.write_text(textwrap.dedent(SPEAKS_UNASKED))
    reward = build_reward(reward_function=f"{path}:compute_score", on_failure="score", failed_score=-2.0)
    assert [score.reward for score in reward(["a", "bb", "BAD", "dddd"], PROBLEMS)] == [1.0, 2.0, -2.0, 4.0]
    reward.close()


def test_a_worker_that_no_longer_reads_does_not_hold_the_trainer(tmp_path):
    """It answers once and then stops; the next call's answers are larger than what a socket holds."""
    path = tmp_path / "reward.py"
    path.write_text(
        "import os, signal, threading\n"
        "def main(items):\n"
        "    if items[0]['response'] == 'first':\n"
        "        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()\n"
        "    return [1.0] * len(items)\n"
    )
    reward = build_reward(reward_function=str(path), time_limit_s=2.0, batch_time_limit_s=20.0)
    assert reward(["first"], PROBLEMS[:1])[0].reward == 1.0
    time.sleep(0.8)
    start = time.monotonic()
    assert reward(["x" * (4 << 20)], PROBLEMS[:1])[0].reward == 1.0
    assert time.monotonic() - start < 15.0
    reward.close()


def test_workers_of_reward_files_see_no_other_process(tmp_path):
    if subprocess.run(["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("the system does not allow process numbers of one's own")
    path = tmp_path / "reward.py"
    path.write_text(
        "import os\ndef main(items):\n    return [{'overall': 1.0, 'pid': os.getpid(), 'uid': os.getuid()}]\n"
    )
    reward = build_reward(reward_function=str(path))
    (score,) = reward(["x"], PROBLEMS[:1])
    assert score.extra == {"pid": 2.0, "uid": float(os.getuid())}
    reward.close()
