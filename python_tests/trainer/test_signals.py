"""SIGTERM and SIGINT, sent to real processes and to this one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from diva_engine.trainer.signals import AT_ONCE, catch_stop_signals

# A main thread in a call that never comes back to Python's handlers, as one that waits for a lost rank.
STUCK = """
import ctypes, time
from diva_engine.trainer.signals import catch_stop_signals
with catch_stop_signals() as stop:
    print("ready", flush=True)
    {wait}
print("signal", stop.number, flush=True)
"""
NEVER = "[ctypes.CDLL(None).sleep(60) for _ in range(9)]"
UNTIL_ASKED = "[time.sleep(0.01) for _ in iter(lambda: stop.number, 15)]"


def started(wait, **extra):
    code = STUCK.format(wait=wait)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **extra}, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_first_asks():
    process = started(UNTIL_ASKED)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "signal 15\n")
    assert err == "SIGTERM: stopping after this phase, with a checkpoint; once more to stop at once\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_ends_at_once_even_a_thread_that_hangs(second):
    process = started(NEVER)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: stopping")
    began = time.monotonic()
    process.send_signal(second)
    assert process.wait(timeout=60) == AT_ONCE
    assert time.monotonic() - began < 5


def test_under_torchrun_an_echo_of_the_first_is_no_second():
    process = started(UNTIL_ASKED + "; time.sleep(1)", RANK="0", WORLD_SIZE="2")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "signal 15\n")
    assert err.count("SIGTERM: stopping") == 1


def test_handlers_come_back_and_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert stop.number == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
