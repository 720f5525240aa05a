"""Two ranks under torchrun, one of them killed at drawn moments, again and again: the other says which and ends in
time, and the run that goes on ends as the one that nobody disturbed, bit for bit."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from python_tests.outcomes import differences, outcome_of, rows_of
from python_tests.small_runs import small_settings, write_inputs

ROOT = Path(__file__).parents[1]
SEED = int(os.environ.get("DIVA_TORTURE_SEED", "0"))
NUM_STEPS, NUM_KILLS = 9, 3
# So long that no rank of the undisturbed run is taken for lost, however busy the machine; and what such a machine takes
# beside it.
TIMEOUT_S, BUSY_S = 20, 15.0


def start(folder, run, output):
    own = [
        "algorithm=diva",
        f"trainer.max_steps={NUM_STEPS}",
        "trainer.val_freq=3",
        "trainer.save_freq=1",
        f"trainer.rank_timeout_s={TIMEOUT_S}",
        "trainer.load_checkpoint_path=auto",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*launcher, "-m", "diva_engine.train", *small_settings(folder, folder / run, *own)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=output,
        stderr=output,
        cwd=folder,
    )


def finish(folder, run):
    with (folder / f"{run}.txt").open("w+") as output:
        code = start(folder, run, output).wait(timeout=400)
        output.seek(0)
        assert code == 0, output.read()


def process_of(torchrun, rank):
    """A handle that becomes readable when the rank's process ends, and its number."""
    for pid in map(int, Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return os.pidfd_open(pid), pid
    raise AssertionError(f"torchrun has no rank {rank}")


def kill_one(folder, run, rank, step, delay_s):
    """Starts the run, or goes on with it; kills `rank` `delay_s` after the step's row; what was said, and how many
    seconds the other rank lived on."""
    metrics = folder / run / "metrics.jsonl"
    with (folder / f"{run}.txt").open("w+") as output:
        torchrun = start(folder, run, output)
        try:
            deadline = time.monotonic() + 200
            while not (metrics.exists() and f'"step": {step}' in metrics.read_text()):
                assert time.monotonic() < deadline
                assert torchrun.poll() is None, Path(output.name).read_text()
                time.sleep(0.01)
            other, _ = process_of(torchrun, 1 - rank)
            _, pid = process_of(torchrun, rank)
            time.sleep(delay_s)
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            assert select.select([other], [], [], 60)[0], "the other rank lives on"
            lived_s = time.monotonic() - began
            assert torchrun.wait(timeout=60) != 0
        finally:
            torchrun.kill()
            torchrun.wait()
        output.seek(0)
        return output.read(), lived_s


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_a_rank_killed_at_drawn_moments_costs_nothing(tmp_path, capsys):
    folder = write_inputs(tmp_path, num_val=2)
    finish(folder, "whole")
    step_s = max(row["time/step_s"] for row in rows_of(folder / "whole") if "time/step_s" in row)
    draw = random.Random(SEED)
    ranks = draw.sample([0, 1, draw.randrange(2)], NUM_KILLS)  # each at least once
    part = NUM_STEPS // NUM_KILLS
    for number, rank in enumerate(ranks):
        step = number * part + draw.randint(1, part - 1)
        delay_s = draw.uniform(0, step_s)
        said, lived_s = kill_one(folder, "killed", rank, step, delay_s)
        with capsys.disabled():
            print(f"\nrank {rank} killed {delay_s:.2f} s after step {step}; the other lived on for {lived_s:.1f} s")
        assert f"error: rank {rank} is lost: it has given no sign for" in said
        assert f"(trainer.rank_timeout_s={TIMEOUT_S}); rank {1 - rank} stops." in said
        assert lived_s < TIMEOUT_S + BUSY_S
    finish(folder, "killed")
    assert not differences(outcome_of(folder / "killed"), outcome_of(folder / "whole"))
