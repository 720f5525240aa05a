"""What is tried: kills, and tests whose trials are the real thing, in parts of one kind each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Tests by file, or file::name, from the folder of tests."""

    name: str
    tests: tuple[str, ...]
    weight: float  # of its share of the time
    draws: int = 0  # how many of its tests go on drawing inputs while there is time


RUNS = "test_faults.py::test_"
KILLS = Part("SIGKILL at drawn moments", (), 8)  # kills.py
PARTS = (
    KILLS,
    Part("damaged checkpoints", ("trainer/test_checkpoint.py",), 1),
    Part("full disk", ("trainer/test_disk_full.py",), 1.5),
    Part(
        "NaN steps, lack of memory",
        (
            "trainer/test_update_faults.py",
            f"{RUNS}a_batch_that_breaks_the_loss_is_skipped_and_the_run_goes_on",
            f"{RUNS}too_many_broken_batches_stop_the_run_with_a_checkpoint",
        ),
        1.5,
    ),
    Part(
        "hostile and failing rewards",
        ("rewards/test_hostile.py", f"{RUNS}a_reward_that_fails_costs_its_answers_or_stops_without_a_loss"),
        2,
    ),
    Part(
        "engine death",
        (
            "trainer/test_engine_restart.py",
            f"{RUNS}an_engine_that_dies_is_restarted_and_the_run_ends_the_same",
            f"{RUNS}an_engine_that_dies_twice_in_a_step_stops_the_run_and_nothing_is_lost",
        ),
        1.5,
    ),
    Part(
        "signals",
        (
            "trainer/test_signals.py",
            "test_resume.py::test_a_signal_stops_with_a_checkpoint_and_says_how_to_go_on",
        ),
        2,
    ),
    Part("files of questions", ("fuzz/test_tables.py",), 2, draws=3),
    Part("pictures", ("fuzz/test_pictures.py",), 1.5, draws=1),
    Part("settings", ("fuzz/test_settings.py",), 1.5, draws=1),
    Part("pickles and code of others", ("fuzz/test_untrusted.py",), 1),
    Part("lost rank", ("trainer/test_rank_watch.py", "test_rank_faults.py", "test_rank_kills.py"), 2),
)
