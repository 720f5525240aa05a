"""A tiny sweep on a random model: it runs, counts, goes on where it was stopped, and repeats to the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from bench.learn import paces, regimes, sweeps
from bench.learn.groups import groups_of
from bench.learn.methods import METHODS, N
from bench.learn.report import compact
from bench.learn.run import Job, Stop, configure, run
from bench.learn.sweep import Folder, run_jobs
from bench.learn.tables import against_table, ratio, summary_table
from diva_engine.demo.model import make_model, make_tokenizer, save_model_folder

JOBS = [Job("gap", method, 1e-4, 7, budget=128) for method in ("grpo", "rescue")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose base answers at random, so that a run needs no warm-up."""
    path = tmp_path_factory.mktemp("learn")
    tokenizer = make_tokenizer()
    save_model_folder(path / "bases" / "gap", make_model(tokenizer, 0), tokenizer)
    return Folder(path)


@pytest.fixture(autouse=True)
def _few_held_out_questions(monkeypatch):
    monkeypatch.setattr(regimes, "NUM_HELD_OUT", 6)


def outcome(results):
    """What does not depend on how fast the machine was."""
    points = [{name: value for name, value in point.items() if name != "cpu_s"} for point in results["points"]]
    return {"job": results["job"], "points": points, "surface": results["surface"]}


def test_a_run_counts_its_rollouts_and_evaluates(folder):
    job = Job("gap", "grpo", 1e-4, 7, budget=256)
    results = run(job, folder.base("gap"))
    assert results == json.loads(json.dumps(results)), "it can be kept as JSON"
    assert [(point["step"], point["rollouts"]) for point in results["points"]] == [(0, 0), (2, 256)]
    start, end = results["points"]
    assert start["all"] == start["hard"] == 0.0
    assert set(start["levels"]) == {"1", "2", "3", "7"}
    assert (end["dead"], end["nonzero"]) == (1.0, 0.0), "a random model is never right"
    assert outcome(run(job, folder.base("gap"))) == outcome(results), "the same job gives the same curve"


def test_a_killed_sweep_goes_on_to_the_same_numbers(folder, tmp_path):
    script = (
        "import sys; from pathlib import Path; from bench.learn import regimes\n"
        "from bench.learn.run import Job, Stop; from bench.learn.sweep import Folder, run_jobs\n"
        "regimes.NUM_HELD_OUT = 6\n"
        "jobs = [Job('gap', method, 1e-4, 7, budget=128) for method in ('grpo', 'rescue')]\n"
        "run_jobs(jobs, Folder(Path(sys.argv[1])), lambda job: Stop(), 1, lambda line: None)\n"
    )
    stopped = Folder(tmp_path)
    (tmp_path / "bases").symlink_to(folder.path / "bases")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 300
    while not stopped.is_done(JOBS[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [stopped.is_done(job) for job in JOBS] == [True, False]
    first = stopped.file(JOBS[0]).read_bytes()
    lines = []
    run_jobs(JOBS, stopped, lambda job: Stop(), 1, lines.append)
    assert stopped.file(JOBS[0]).read_bytes() == first, "what was finished is not run again"
    assert lines[0] == "2 runs, 1 done before"
    assert lines[1].startswith("[1/1, ")
    assert lines[1].endswith(JOBS[1].name)
    run_jobs(JOBS, folder, lambda job: Stop(), 1, lines.append)
    assert [outcome(stopped.read(job)) for job in JOBS] == [outcome(folder.read(job)) for job in JOBS]


def test_a_sweep_reads_the_reported_rates_from_the_choosing_runs(tmp_path, monkeypatch):
    folder, targets = Folder(tmp_path), {name: {"all": 0.5, "hard": 0.5} for name in sweeps.REGIMES}
    curves = {2.5e-5: [0.1, 0.1, 0.1], 5e-5: [0.1, 0.2, 0.3], 1e-4: [0.1, 0.6, 0.7], 2e-4: [0.1, 0.2, 0.6]}
    for job in paces.choosing_jobs(["grpo"]):
        points = [
            {
                "rollouts": 640 * i + job.per_step - 64,  # half a step is better, all else alike
                "step": 5 * i,
                "cpu_s": float(i),
                "all": value,
                "hard": value,
                "levels": {},
                "differing": 0.0,
            }
            for i, value in enumerate(curves[job.lr])
        ]
        folder.write(job, {"job": vars(job), "points": points, "surface": []})
    assert paces.choose_pace("gap", "grpo", folder, targets) == paces.Pace(64, 1e-4)
    jobs = [paces.with_pace(job, folder, targets) for job in sweeps.jobs_of("ablations") if job.method == "grpo_rrb"]
    reported = {(paces.pace_of(job), job.seed) for job in jobs}
    assert reported == {(paces.Pace(64, 1e-4), seed) for seed in sweeps.REPORTED_SEEDS}
    kept = [job for job in sweeps.jobs_of("paces") if job == paces.with_pace(job, folder, targets)]
    assert {paces.pace_of(job) for job in kept} == set(paces.PACES)
    assert not {job.seed for job in jobs} & set(paces.CHOOSING_SEEDS)
    with pytest.raises(LookupError, match="no learning rate of rescue in gap was tried"):
        paces.choose_pace("gap", "rescue", folder, targets)
    tried = [job for job in paces.choosing_jobs(["grpo"]) if job.regime == "gap" and job.per_step == 64]
    slow, fast = groups_of([job for job in tried if job.lr != 2e-4][::-1], folder)
    assert ratio(slow, fast, "all", 0.5, "rollouts") == ">=2.5x"  # at least 1,280 against 640 * 0.8
    assert ratio(fast, slow, "all", 0.5, "rollouts") == "-"
    assert compact(fast.runs[0])["all"] == [0.1, 0.6, 0.7]
    assert summary_table([fast, slow], targets).splitlines()[-1] == "| grpo | 512 / 512 |", "the pace named first"
    assert summary_table([slow, fast], targets).splitlines()[-1] == "| grpo | >=1,280 / >=1,280 |"
    lines = against_table([fast, replace(slow, method="diva")], targets, "grpo", ["diva", "gold"]).splitlines()
    assert lines[-4:] == [
        "| fewer rollouts than diva | >=2.5x / >=2.5x |", "| less CPU time than diva | >=2.5x / >=2.5x |",
        "| fewer rollouts than gold | - |", "| less CPU time than gold | - |",
    ]  # fmt: skip


def test_no_method_may_ask_more_than_a_step_has(folder):
    prompts = {"diva": lambda config: 1 + config.variants.num, "hint_grpo": lambda config: config.hint_grpo.groups,
               "dapo": lambda config: config.dapo.max_draws}  # fmt: skip
    for name, method in METHODS.items():
        for pace in paces.PACES:
            config = configure(pace.of(Job("gap", name, 1e-4, 0)), folder.base("gap"))
            prompts_each = prompts.get(method.recipe, lambda config: 1)(config)
            asked = config.data.rollout_batch_size * N * prompts_each
            assert pace.per_step - 2 * N <= asked <= pace.per_step, name
            assert config.worker.actor.global_batch_size == pace.per_update


def test_ablations_share_the_rate_of_their_method():
    assert [paces.owner(name) for name in ("rescue_prompt", "diva_no_rrb", "grpo_rrb", "gold")] == [
        "rescue", "diva", "grpo", "gold",
    ]  # fmt: skip
    ablated = {method for methods in paces.ABLATIONS.values() for method in methods}
    assert ablated <= set(METHODS)


@pytest.mark.parametrize(("at_least", "is_due"), [(0, True), (1280, True), (1281, False)])
def test_a_run_may_stop_once_it_keeps_the_targets_and_areas_can_be_compared(at_least, is_due):
    points = [{"rollouts": 640 * i, "all": value, "hard": value} for i, value in enumerate([0.1, 0.6, 0.7])]
    assert Stop((0.5, 0.3), at_least).is_due(points) == is_due
    assert not Stop((0.5, 0.65), at_least).is_due(points)
    assert not Stop().is_due(points)


def test_a_report_shows_what_a_sweep_is_held_against():
    for sweep, beside in sweeps.BESIDE.items():
        own = {job.method for job in sweeps.jobs_of(sweep)}
        assert {job.method for job in sweeps.jobs_to_report(sweep)} == own | set(beside)
        assert sweeps.jobs_to_report(sweep)[-len(sweeps.jobs_of(sweep)) :] == sweeps.jobs_of(sweep)
    shown = {(job.method, paces.pace_of(job)) for job in sweeps.jobs_to_report("main")}
    assert {("grpo", pace) for pace in paces.PACES} < shown


def test_every_sweep_runs_every_reported_seed():
    for sweep in sweeps.SWEEPS:
        jobs = sweeps.jobs_of(sweep)
        assert {job.seed for job in jobs} == set(sweeps.REPORTED_SEEDS)
        assert len({job.name for job in jobs}) == len(jobs)
