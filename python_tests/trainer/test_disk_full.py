"""A real full disk: a small tmpfs under the run's checkpoints."""

import json
import subprocess

import pytest

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.settings import load_config
from diva_engine.train import main, train
from diva_engine.trainer.checkpoint import list_checkpoints
from python_tests.outcomes import outcome_of
from python_tests.small_runs import small_settings, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def settings(inputs, run_dir, *extra):
    saving = ["trainer.save_freq=1", "trainer.save_limit=1"]
    return small_settings(inputs, run_dir, "data.max_response_length=6", *saving, *extra)


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train(load_config(settings(inputs, run_dir), recipe_defaults))
    return run_dir


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def small_disk(tmp_path, unbroken):
    """The run's checkpoints on a disk that holds one of them and a half."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    size = int(1.5 * size_of(list_checkpoints(unbroken)[-1]))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_run_goes_on_and_keeps_the_old_checkpoint(inputs, unbroken, small_disk, capsys, mode):
    run_dir = small_disk.parent
    words = settings(inputs, run_dir, f"trainer.async_save={str(mode == 'async').lower()}")
    assert main(words) == 2
    told = capsys.readouterr().err
    for step in (2, 3, 4):
        assert f"warning: the checkpoint of step {step} was not written" in told
    assert "No space left on device" in told
    assert "error: the last checkpoint was not written" in told.splitlines()[-1]
    assert [path.name for path in small_disk.iterdir()] == ["global_step_1"], "halves are removed, to make room"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["checkpoint/failed"] == 0
    assert rows[-1]["checkpoint/failed"] >= 1
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 4

    subprocess.run(["mount", "-o", "remount,size=1g", str(small_disk)], check=True)
    assert main([*words, "trainer.load_checkpoint_path=latest"]) == 0
    assert outcome_of(run_dir) == outcome_of(unbroken), "with room made, it ends as if the disk had never been full"
