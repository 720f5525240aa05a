"""Nothing that others made is executed: no pickle, no code of a model folder, no Python file that was not named."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diva_engine.config import Config
from diva_engine.policy.model import load_policy
from diva_engine.records import UserError
from diva_engine.train import main
from diva_engine.trainer.checkpoint import load_trainer_state
from diva_engine.trainer.loop import Trainer
from python_tests.fuzz_budget import TRIED
from python_tests.models import build_tiny_model
from python_tests.questions import write_questions

PACKAGE = Path(__file__).parents[2] / "diva_engine"
MODULES = sorted(PACKAGE.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas"}


def calls_in(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call with what is called, as "torch.load"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & UNPICKLERS
    for called, call in calls_in(path):
        if called == "torch.load":
            assert keyword(call, "weights_only") is True, f"line {call.lineno}"
        if called in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") in (None, False), f"line {call.lineno}"
        assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"), call.lineno
        if called.startswith("subprocess."):
            assert keyword(call, "shell") in (None, False), f"line {call.lineno}"


def test_torch_load_is_used_where_this_looks_for_it():
    """The check above would pass on nothing at all."""
    found = [called for path in MODULES for called, _ in calls_in(path)]
    assert found.count("torch.load") >= 1
    assert "ast.literal_eval" in found
    assert "yaml.safe_load" in found


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (open, (str(self._path), "w"))


@pytest.fixture
def mark(tmp_path):
    """The file that a payload makes."""
    return tmp_path / "executed"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def build_model(folder: Path) -> Path:
    build_tiny_model("qwen2_5_vl", folder, hidden_size=32)
    return folder


@pytest.fixture
def model(model_folder, tmp_path):
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_the_payload_works_where_it_is_unpickled(mark):
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


PAYLOADS = {
    "a pickle": lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
    "an old pickle": lambda path, bomb: path.write_bytes(pickle.dumps(bomb, protocol=0)),
    "torch's own format": lambda path, bomb: torch.save({"step": 1, "x": bomb}, path),
    "torch's old format": lambda path, bomb: torch.save(bomb, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_a_checkpoint_with_a_payload_is_refused(case, tmp_path, mark):
    PAYLOADS[case](tmp_path / "trainer.pt", Bomb(mark))
    TRIED["files with a pickled payload"] += 1
    with pytest.raises(UserError, match=r"trainer.pt is damaged .*; resume from an older one"):
        load_trainer_state(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("case", PAYLOADS)
@pytest.mark.parametrize("beside_safetensors", [False, True])
def test_weights_with_a_payload_are_not_unpickled(case, beside_safetensors, model, mark):
    if not beside_safetensors:
        (model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        PAYLOADS[case](model / name, Bomb(mark))
        TRIED["files with a pickled payload"] += 1
    if beside_safetensors:
        load_policy(model)
    else:
        with pytest.raises(UserError, match="weights cannot be loaded"):
            load_policy(model)
    assert not mark.exists()


def test_a_safetensors_file_that_is_a_pickle_is_refused(model, mark):
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_policy(model)
    assert not mark.exists()


CODE = """
from pathlib import Path
Path({mark!r}).write_text("")
from transformers import *
class Custom(PreTrainedModel): pass
class CustomConfig(PretrainedConfig): model_type = "custom"
class CustomTokenizer(PreTrainedTokenizerFast): pass
class CustomProcessor: pass
"""
AUTO_MAPS = {  # file -> what it says of code in the folder
    "config.json": {"AutoConfig": "custom.CustomConfig", "AutoModelForImageTextToText": "custom.Custom"},
    "tokenizer_config.json": {"AutoTokenizer": ["custom.CustomTokenizer", "custom.CustomTokenizer"]},
    "preprocessor_config.json": {"AutoImageProcessor": "custom.CustomProcessor"},
}


def put_code(model: Path, mark: Path, files: list[str], unknown_type: bool) -> None:
    for name in ("custom.py", "modeling_custom.py", "reward.py", "__init__.py", "sitecustomize.py"):
        (model / name).write_text(CODE.format(mark=str(mark)))
    for name in files:
        path = model / name
        found = json.loads(path.read_text()) if path.exists() else {}
        found["auto_map"] = AUTO_MAPS[name]
        if unknown_type and name == "config.json":
            found["model_type"] = "custom"
        path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "files", [["config.json"], ["tokenizer_config.json"], ["preprocessor_config.json"], list(AUTO_MAPS)], ids="+".join
)
@pytest.mark.parametrize("unknown_type", [False, True], ids=["known type", "unknown type"])
def test_code_of_a_model_folder_is_not_run(files, unknown_type, model, mark):
    """A type that transformers knows is loaded by its own classes; another is refused."""
    put_code(model, mark, files, unknown_type)
    TRIED["model folders with code"] += 1
    if unknown_type and "config.json" in files:
        with pytest.raises(UserError, match=r"config\.json cannot be read"):
            load_policy(model)
    else:
        load_policy(model)
    assert not mark.exists()
    assert Config().worker.actor.model.trust_remote_code is False


def test_code_of_a_model_folder_is_run_where_the_user_says_so(model, mark):
    """Or the test above would prove nothing."""
    put_code(model, mark, ["config.json"], unknown_type=True)
    program = f"from diva_engine.policy.model import load_policy; load_policy({str(model)!r}, trust_remote_code=True)"
    environment = {
        "HF_MODULES_CACHE": str(model.parent / "modules"),
        "PYTHONPATH": str(PACKAGE.parent),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert mark.exists(), done.stderr


def test_a_chat_template_cannot_reach_python(model, mark):
    (model / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.mkdir('" + str(mark) + "') }}{{ ''.__class__.__mro__ }}"
    )
    tokenizer = load_policy(model).processor.tokenizer
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert not mark.exists()


def test_python_files_beside_data_and_model_are_not_run(model, mark, tmp_path, monkeypatch, capsys):
    """Reward files run only when they are named."""
    data = tmp_path / "data"
    data.mkdir()
    write_questions(data / "train.parquet", 4)
    for folder in (data, model):
        for name in ("reward.py", "reward_function.py", "train.py", "dataset.py", "conftest.py", "sitecustomize.py"):
            (folder / name).write_text(CODE.format(mark=str(mark)))
    monkeypatch.chdir(data)
    monkeypatch.setattr(Trainer, "run", lambda self: {})
    words = [f"model={model}", f"data.train_files={data}", "data.rollout_batch_size=2"]
    assert main([*words, f"trainer.save_checkpoint_path={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
    assert not mark.exists()
