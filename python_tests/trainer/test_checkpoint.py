"""Checkpoints appear whole or not at all; what is damaged is named and never taken."""

import json
import shutil
import threading

import pytest
import torch

from diva_engine.policy.model import load_policy
from diva_engine.records import UserError
from diva_engine.settings import build_config
from diva_engine.trainer.checkpoint import (
    best_checkpoint,
    checkpoint_to_go_on_from,
    find_checkpoint,
    list_checkpoints,
    load_trainer_state,
)
from diva_engine.trainer.checkpoint_files import MANIFEST, DamageError, check
from diva_engine.trainer.checkpoint_saver import CheckpointSaver
from diva_engine.trainer.run_dir import find_run_dir, make_run_dir
from diva_engine.trainer.sharded_tensors import read_tensors
from python_tests.models import build_tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model("qwen2", folder)
    return load_policy(folder)


TENSORS = {"odd": torch.arange(7.0), "none of it": torch.zeros(0, 3), "bfloat16": torch.ones(2, 3).bfloat16()}


def saved(policy, run_dir, steps, best=(), **settings):
    """A run folder with a checkpoint for each of `steps`."""
    config = build_config({f"trainer.{name}": value for name, value in settings.items()})
    saver = CheckpointSaver(run_dir, policy, config)
    for i, step in enumerate(steps):
        saver.save(step, TENSORS, {"progress": {"step": step}}, {config.trainer.save_best: best[i]} if best else {})
    saver.close()
    assert not saver.num_failed, saver.last_error
    return run_dir


def names(run_dir):
    return [path.name for path in list_checkpoints(run_dir)]


def test_the_oldest_beyond_the_limit_go_and_the_newest_is_found(policy, tmp_path):
    saved(policy, tmp_path, (2, 10, 9), save_limit=2)
    assert names(tmp_path) == ["global_step_9", "global_step_10"]
    found_last = find_checkpoint("latest", tmp_path)
    assert load_trainer_state(found_last) == {"progress": {"step": 10}}
    found = {name: torch.full_like(value, 9) for name, value in TENSORS.items()}
    read_tensors(found_last / "state", found)
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert not list(tmp_path.rglob("*.partial"))


BEST = {
    "highest": ((0.1, 0.9, 0.5, 0.2), "max", 2),
    "lowest": ((0.4, 0.9, 0.1, 0.2), "min", 3),
    "the later of equals": ((0.5, 0.9, 0.9, 0.2), "max", 3),
    "not a number": ((0.3, float("nan"), 0.1, 0.2), "max", 1),
}


@pytest.mark.parametrize(("values", "mode", "step"), BEST.values(), ids=BEST)
def test_the_best_is_never_dropped(policy, tmp_path, values, mode, step):
    saved(policy, tmp_path, (1, 2, 3, 4), values, save_limit=1, save_best="val/accuracy", save_best_mode=mode)
    assert names(tmp_path) == [f"global_step_{step}", "global_step_4"]
    best = best_checkpoint(tmp_path, "val/accuracy", mode)
    assert (best.path.name, best.value) == (f"global_step_{step}", values[step - 1])


def test_every_file_is_sealed(policy, tmp_path):
    folder = list_checkpoints(saved(policy, tmp_path, (1,)))[0]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert check(folder)["files"].keys() == files - {MANIFEST}
    assert {"policy/model.safetensors", "policy/tokenizer.json", "trainer.pt", "config.yaml"} < files


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def cut_much(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    """One bit in the middle, the size as it was."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


STATE = "state/shard-00001-model-00001-of-00001.safetensors"
DAMAGE = {
    "weights cut": (cut, "policy/model.safetensors", "policy/model.safetensors has"),
    "a bit of the weights": (flip, "policy/model.safetensors", "SHA-256 differs"),
    "a bit of the moments": (flip, STATE, "SHA-256 differs"),
    "moments missing": (remove, STATE, f"{STATE} is missing"),
    "trainer state cut": (cut, "trainer.pt", "trainer.pt has"),
    "settings changed": (flip, "config.yaml", "SHA-256 differs"),
    "no manifest": (remove, MANIFEST, "it has no manifest.json"),
    "manifest cut": (cut_much, MANIFEST, "manifest.json cannot be read"),
}


@pytest.mark.parametrize(("harm", "name", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(policy, tmp_path, harm, name, words):
    saved(policy, tmp_path, (4, 8))
    harm(tmp_path / "checkpoints" / "global_step_8" / name)
    with pytest.raises(UserError, match="latest takes the newest one that is whole"):
        find_checkpoint(str(tmp_path / "checkpoints" / "global_step_8"), tmp_path)
    told = []
    assert find_checkpoint("latest", tmp_path, told.append).name == "global_step_4"
    (line,) = told
    assert "global_step_8 is damaged" in line
    assert words in line
    assert names(tmp_path) == ["global_step_4"], "what is damaged no longer counts among the kept"
    harm(tmp_path / "checkpoints" / "global_step_4" / name)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(global_step_4: "):
        find_checkpoint("latest", tmp_path, told.append)


def test_a_half_written_folder_is_no_checkpoint(policy, tmp_path):
    half = tmp_path / "checkpoints" / "global_step_5.partial"
    half.mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no checkpoint \(only global_step_5\.partial, never finished\)"):
        find_checkpoint("latest", tmp_path)
    saved(policy, tmp_path, (4,))
    assert names(tmp_path) == ["global_step_4"]
    assert not half.exists(), "the next save makes room"
    half.mkdir()
    told = []
    assert find_checkpoint("latest", tmp_path, told.append).name == "global_step_4"
    assert told == [f"{half} was never finished; it is passed over"]


def test_a_checkpoint_killed_before_it_got_its_name_is_taken(policy, tmp_path):
    saved(policy, tmp_path, (4, 8))
    folder = tmp_path / "checkpoints"
    (folder / "global_step_8").rename(folder / "global_step_8.partial")
    told = []
    assert find_checkpoint("latest", tmp_path, told.append) == folder / "global_step_8"
    assert told == [f"{folder / 'global_step_8.partial'} was whole but for its name; it is global_step_8 now"]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


LEFT = {  # what a run that was to go on finds -> whether it begins anew; else it is an error
    "no folder": (lambda run: shutil.rmtree(run), True),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints" / "global_step_1"), True),
    "a half": (lambda run: cut(newest(run).rename(run / "checkpoints/global_step_1.partial") / "trainer.pt"), True),
    "a damaged one": (lambda run: cut(newest(run) / "trainer.pt"), False),
    "one put aside": (lambda run: newest(run).rename(run / "checkpoints/global_step_1.damaged"), False),
    "a finished run's": (
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "summary.json").write_text("{}")),
        False,
    ),
}


def newest(run):
    return list_checkpoints(run)[-1]


@pytest.mark.parametrize(("deed", "is_anew"), LEFT.values(), ids=LEFT)
def test_auto_begins_anew_only_where_no_checkpoint_was_lost(policy, tmp_path, deed, is_anew):
    run = tmp_path / "run"
    saved(policy, run, (1,))
    told = []
    assert checkpoint_to_go_on_from("auto", run, told.append) == newest(run)
    deed(run)
    if is_anew:
        assert checkpoint_to_go_on_from("auto", run, told.append) is None
        assert told == [f"trainer.load_checkpoint_path=auto: {run} holds no checkpoint yet; the run begins anew"]
    else:
        with pytest.raises(UserError, match="no checkpoint"):
            checkpoint_to_go_on_from("auto", run, told.append)


def test_auto_takes_one_that_is_whole_but_for_its_name(policy, tmp_path):
    saved(policy, tmp_path, (1,))
    newest(tmp_path).rename(tmp_path / "checkpoints/global_step_1.partial")
    assert checkpoint_to_go_on_from("auto", tmp_path, lambda line: None) == newest(tmp_path)


def test_a_damaged_state_is_named_and_nothing_is_unpickled(policy, tmp_path):
    folder = list_checkpoints(saved(policy, tmp_path, (1,)))[0]
    (folder / "trainer.pt").write_bytes((folder / "trainer.pt").read_bytes()[:100])
    with pytest.raises(UserError, match=r"trainer\.pt is damaged"):
        load_trainer_state(folder)

    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    torch.save(Harmful(), folder / "trainer.pt")
    with pytest.raises(UserError, match="is damaged"):
        load_trainer_state(folder)
    assert not [path for path in folder.rglob("*") if path.suffix in (".metadata", ".distcp", ".pkl")]


def test_a_save_holds_the_state_of_its_step_whatever_happens_after_it(policy, tmp_path, monkeypatch):
    """The writer starts only when the weights have moved on."""
    saver = CheckpointSaver(tmp_path, policy, build_config({}))
    may_begin = threading.Event()
    begin = saver._begin
    monkeypatch.setattr(saver, "_begin", lambda partial: may_begin.wait(60) and begin(partial))
    weight = next(policy.model.parameters())
    before, moment = weight.detach().clone(), torch.ones(3)
    saver.save(1, {"moment": moment}, {"progress": {"step": 1}}, {})
    with torch.no_grad():
        weight.add_(1)
        moment.add_(1)
    assert not names(tmp_path)
    may_begin.set()
    saver.close()
    with torch.no_grad():
        weight.sub_(1)
    (folder,) = list_checkpoints(tmp_path)
    found = {"moment": torch.zeros(3)}
    read_tensors(folder / "state", found)
    assert torch.equal(found["moment"], torch.ones(3))
    assert torch.equal(next(load_policy(folder / "policy").model.parameters()), before)


def test_a_step_that_waits_is_a_setting(policy, tmp_path):
    saver = CheckpointSaver(tmp_path, policy, build_config({"trainer.async_save": False}))
    saver.save(1, {}, {"progress": {}}, {})
    assert names(tmp_path) == ["global_step_1"]
    assert saver.take_metrics().keys() == {"checkpoint/failed", "time/save_s"}
    assert saver.take_metrics() == {"checkpoint/failed": 0.0}


def test_a_save_that_fails_is_told_and_counted_and_the_old_one_stays(policy, tmp_path, monkeypatch, capsys):
    saver = CheckpointSaver(tmp_path, policy, build_config({"trainer.save_limit": 1}))
    saver.save(1, TENSORS, {"progress": {"step": 1}}, {})
    saver.wait()
    monkeypatch.setattr(saver, "_write_own", lambda *_: 1 / 0)
    saver.save(2, TENSORS, {"progress": {"step": 2}}, {})
    saver.wait()
    assert saver.take_metrics()["checkpoint/failed"] == 1
    assert saver.last_error == "division by zero"
    assert "the checkpoint of step 2 was not written (division by zero)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["global_step_1"]
    monkeypatch.undo()
    saver.save(2, TENSORS, {"progress": {"step": 2}}, {})
    saver.close()
    assert (saver.last_error, names(tmp_path)) == ("", ["global_step_2"])


def test_a_manifest_names_versions_and_ranks(policy, tmp_path):
    folder = list_checkpoints(saved(policy, tmp_path, (3,)))[0]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["step"], manifest["num_ranks"]) == (3, 1)
    assert manifest["versions"]["torch"] == torch.__version__
    with pytest.raises(DamageError, match="has no manifest"):
        check(tmp_path)


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
