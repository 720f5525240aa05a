"""Checkpoints appear whole or not at all, and a damaged one is named."""

import pytest
import torch

from diva_engine.policy.model import load_policy
from diva_engine.records import UserError
from diva_engine.settings import build_config
from diva_engine.trainer.checkpoint import find_checkpoint, list_checkpoints, load_trainer_state, save_checkpoint
from diva_engine.trainer.run_dir import find_run_dir, make_run_dir
from python_tests.models import build_tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model("qwen2", folder)
    return load_policy(folder)


def test_the_oldest_beyond_the_limit_go_and_the_newest_is_found(policy, tmp_path):
    config = build_config({"trainer.save_limit": 2})
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, step, policy, {"step": step}, config)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["global_step_9", "global_step_10"]
    newest = find_checkpoint("latest", tmp_path)
    assert load_trainer_state(newest) == {"step": 10}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_half_written_folder_is_no_checkpoint(policy, tmp_path):
    (tmp_path / "checkpoints" / "global_step_5.partial").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint("latest", tmp_path)
    save_checkpoint(tmp_path, 5, policy, {"step": 5}, build_config({}))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["global_step_5"]


def test_a_damaged_state_is_named_and_nothing_is_unpickled(policy, tmp_path):
    folder = save_checkpoint(tmp_path, 1, policy, {"tensor": torch.ones(4)}, build_config({}))
    (folder / "trainer.pt").write_bytes((folder / "trainer.pt").read_bytes()[:100])
    with pytest.raises(UserError, match=r"trainer\.pt is damaged"):
        load_trainer_state(folder)

    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    torch.save(Harmful(), folder / "trainer.pt")
    with pytest.raises(UserError, match="is damaged"):
        load_trainer_state(folder)


def test_unnamed_runs_get_a_free_folder_and_named_ones_must_be_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/grpo_seed1", "runs/grpo_seed1_2", "runs/grpo_seed1_3"):
        folder = find_run_dir(build_config({}))
        assert str(folder) == expected
        make_run_dir(folder)
        (folder / "config.yaml").touch()
    named = build_config({"trainer.experiment_name": "mine"})
    make_run_dir(find_run_dir(named))
    (find_run_dir(named) / "config.yaml").touch()
    with pytest.raises(UserError, match="already holds a run"):
        find_run_dir(named)


def test_a_resumed_run_goes_on_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "elsewhere" / "checkpoints" / "global_step_3"
    config = build_config({"trainer.load_checkpoint_path": str(checkpoint)})
    assert find_run_dir(config) == tmp_path / "elsewhere"
