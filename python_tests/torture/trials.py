"""Runs tests as trials, by the clock, and counts what came of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from python_tests.fuzz_budget import TRIED
from python_tests.torture.parts import Part

TESTS = Path(__file__).parents[1]
TRIAL_LIMIT_S = 300  # a trial that takes longer hangs
SHARE_OF_DRAWING = 0.6  # of a part's time; the rest is for its other tests


@dataclass
class Outcome:
    """What was tried in one part, and what came of it."""

    name: str
    tried: int = 0  # trials: inputs where the part counts them, else tests
    skipped: int = 0  # tests that this machine cannot run
    left: int = 0  # tests that there was no time for
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)  # trials by kind
    reasons: dict[str, int] = field(default_factory=dict)  # tests skipped by reason


def try_tests(part: Part, seconds: float, seed: int) -> Outcome:
    """The part's tests in drawn order until its time is used; one at least."""
    began, before = time.monotonic(), Counter(TRIED)
    counting = Counting(began + seconds, seed)
    words = [str(TESTS / name) for name in part.tests]
    words += ["-q", "-m", "not torture", "-p", "no:cacheprovider", f"--timeout={TRIAL_LIMIT_S}"]
    if part.draws:
        words += [f"--fuzz-seconds={SHARE_OF_DRAWING * seconds / part.draws}", f"--fuzz-seed={seed}"]
    code = pytest.main(words, plugins=[counting])
    if counting.is_broken_off:
        raise KeyboardInterrupt
    kinds = dict(sorted((TRIED - before).items()))
    outcome = Outcome(part.name, sum(kinds.values()) or counting.passed + len(counting.lost), kinds=kinds)
    outcome.lost = counting.lost
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        outcome.lost = [*counting.lost, f"the tests could not be run: {pytest.ExitCode(code).name}"]
    outcome.skipped, outcome.reasons = counting.skipped.total(), dict(counting.skipped)
    outcome.left = counting.collected - counting.passed - len(counting.failed) - outcome.skipped
    outcome.seconds = time.monotonic() - began
    return outcome


class Counting:
    """A pytest plugin: draws the order of the tests, stops when time is up, counts by pytest's own reports."""

    def __init__(self, end: float, seed: int) -> None:
        self._end, self._seed = end, seed
        self._session: pytest.Session | None = None
        self.collected = self.passed = 0
        self.is_broken_off = False  # by the user
        self.failed: set[str] = set()
        self.lost: list[str] = []
        self.skipped: Counter[str] = Counter()  # by reason

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drawn within each file: a file's fixtures are made once."""
        random.Random(self._seed).shuffle(items)
        items.sort(key=lambda item: str(item.path))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._session, self.collected = session, len(session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.lost.append(f"{report.nodeid}: {report.longreprtext[-300:]}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.add(report.nodeid)
            self.lost.append(f"{report.nodeid}: {_message(report)}")
        elif report.skipped:
            self.skipped[_reason(report)] += 1
        elif report.when == "call" and report.passed:
            self.passed += 1

    def pytest_runtest_logfinish(self) -> None:
        if self._session is not None and time.monotonic() > self._end:
            self._session.shouldstop = "its time is used"

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.is_broken_off = not excinfo.errisinstance(pytest.Session.Interrupted)


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext).splitlines()[0][:300]


def _reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
