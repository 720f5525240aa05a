"""A run that is killed again and again ends as the one that nobody disturbed."""

import os

import pytest

from python_tests.torture.kills import kill_many

COUNT = int(os.environ.get("DIVA_KILLS", "8"))
SEED = int(os.environ.get("DIVA_TORTURE_SEED", "0"))


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_killed_at_drawn_moments_nothing_is_lost(tmp_path, capsys):
    report = kill_many(COUNT, SEED, tmp_path)
    with capsys.disabled():
        print(f"\n{report}")
    assert report.kills.total() >= COUNT
    assert not report.lost
