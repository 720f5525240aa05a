"""The report of a run: from its newest checkpoint, as a summary and as a ledger that starts another run."""

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.algorithm.variant_effects import VariantEffects
from diva_engine.report import main, print_effects, print_summary, slowest_movers
from diva_engine.settings import load_config
from diva_engine.train import train
from python_tests.models import build_tiny_model
from python_tests.questions import EVEN_LENGTH_REWARD, write_questions


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=32)
    write_questions(folder / "train.parquet", 6)
    (folder / "reward.py").write_text(EVEN_LENGTH_REWARD)
    train(load_config(words(folder), recipe_defaults))
    return folder / "run"


def words(folder, *extra):
    return [
        f"data.train_files={folder / 'train.parquet'}",
        f"model={folder / 'model'}",
        "algorithm=diva",
        "data.rollout_batch_size=3",
        "data.max_response_length=8",
        "worker.rollout.n=4",
        f"worker.reward.reward_function={folder / 'reward.py'}:score",
        "trainer.logger=[file]",
        "trainer.max_steps=4",
        f"trainer.save_checkpoint_path={folder / 'run'}",
        *extra,
    ]


def test_a_runs_ledger_is_summed_up_and_starts_another(run_dir, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    assert main(["--run", str(run_dir), "--ledger", str(out)]) == 0
    text = capsys.readouterr().out
    assert "6 questions in the ledger, 6 of them visited" in text
    assert "global_step_4" in text
    assert "6 questions written" in text.replace("\n", " ")
    assert "std error" in text, "every question had a variant"
    table = pq.read_table(out).to_pylist()
    assert sorted(row["id"] for row in table) == [f"q{i}" for i in range(6)]
    assert sum(row["visits"] for row in table) == 4 * 3
    again = words(run_dir.parent, f"difficulty.warm_start={out}", "trainer.max_steps=1")
    again[-3] = f"trainer.save_checkpoint_path={tmp_path / 'run'}"
    train(load_config(again, recipe_defaults))
    assert "levels of 6 of 6 questions" in capsys.readouterr().out
    assert main(["--run", str(tmp_path / "run"), "--ledger", str(tmp_path / "next.csv")]) == 0
    (later,) = {line.split(",")[4] for line in (tmp_path / "next.csv").read_text().splitlines() if "q0" in line}
    assert int(later) >= 2, "visits go on counting"


def row(id, level, rate, visits):
    numbers = {"difficulty": level, "pass_rate": rate, "visits": visits, "last_step": 3, "hint_steps": 1}
    return {"id": id, "last_accuracy": rate, **numbers}


ROWS = [
    row("a", 9.0, 0.0, 5),
    row("b", 9.0, 0.0, 7),
    row("c", 1.4, 1.0, 3),
    row("[red]d", 8.6, 0.25, 2),
    row("e", 9.0, 0, 1),
]


def printed(act):
    console = Console(width=100, highlight=False, markup=False)
    with console.capture() as capture:
        act(console)
    return capture.get()


def test_the_summary_counts_levels_dead_and_solved():
    text = printed(lambda console: print_summary("run", [*ROWS, row("f", 5.0, None, 0)], 5, console))
    assert "6 questions in the ledger, 5 of them visited" in text
    bars = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()[:1].isdigit()}
    assert [bars[str(level)][0] for level in range(1, 10)] == ["1", "0", "0", "0", "1", "0", "0", "0", "4"]
    assert len(bars["9"][1]) == 40
    assert len(bars["1"][1]) == 10
    assert "dead at the last visit    60.0% (3 of 5)" in text
    assert "solved at the last visit  20.0% (1 of 5)" in text
    assert "[red]d" in text, "an id is shown as it stands"


def test_the_slowest_movers_were_visited_often_and_are_rarely_right():
    assert [row["id"] for row in slowest_movers(ROWS, 5)] == ["b", "a", "[red]d"]
    assert [row["id"] for row in slowest_movers(ROWS, 1)] == ["b"]


def test_effects_are_a_table():
    effects = VariantEffects()
    effects.load_state_dict({"rows": [["hint", 2, 3, 0.25, 0.08], ["perturbation", 6, 1, -0.5, 0.0]]})
    lines = [line.split() for line in printed(lambda console: print_effects(effects, console)).splitlines()]
    assert ["hint", "2", "+25.0%", "11.5%", "3"] in lines
    assert ["perturbation", "6", "-50.0%", "-", "1"] in lines


def test_a_run_without_a_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
