"""The command under torchrun: the first rank speaks and writes; what the user gave wrongly is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.small_runs import small_settings, write_inputs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    write_inputs(folder, num_train=4)
    return folder


def torchrun(folder, *extra):
    own = ["data.max_response_length=6", "trainer.logger=[console,file]", "trainer.max_steps=2"]
    words = small_settings(folder, folder / "run", *own, *extra)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*launcher, "-m", "diva_engine.train", *words],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTHONPATH": path},
        cwd=folder,
    )


@pytest.mark.slow
def test_one_rank_speaks_and_writes(folder):
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2/2") == 1
    assert done.stdout.count("4 questions, 0 rows left out") == 1
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    manifest = json.loads((folder / "run/checkpoints/global_step_2/manifest.json").read_text())
    assert manifest["num_ranks"] == 2


@pytest.mark.slow
def test_what_is_given_wrongly_is_one_line(folder):
    """Met before the ranks have met (a setting), by all of them alike (a device), and by one of them alone."""
    (folder / "broken.py").write_text("def score(inputs):\n    raise ValueError('no ' + 'luck')\n")
    cases = {
        "did you mean worker.rollout.n?": ["worker.rolout.n=3"],
        "no such folder": [f"model={folder / 'nowhere'}", f"trainer.save_checkpoint_path={folder}/a"],
        "no luck": [
            f"worker.reward.reward_function={folder / 'broken.py'}:score",
            f"trainer.save_checkpoint_path={folder}/b",
        ],
    }
    for message, words in cases.items():
        done = torchrun(folder, *words)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode != 0
        assert len(lines) == 1, done.stderr
        assert message in lines[0]
