"""A checkpoint's model, taken out, is what transformers and peft load."""

import shutil

import diva_engine  # isort: skip  # noqa: F401 - before transformers: it lets torchvision be imported beside a CPU torch

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from diva_engine.export import main
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree
from python_tests.prompts import make_prompt, random_image
from python_tests.small_runs import small_run, write_inputs

peft = pytest.importorskip("peft")
REWARD = """
def score(inputs):
    return [{"overall": float(sum(item["response"].encode()) % 2)} for item in inputs]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of two steps: all weights trained, adapters trained."""
    folder = tmp_path_factory.mktemp("export")
    write_inputs(folder, num_train=4, reward=REWARD)
    for name, extra in {"whole": [], "lora": ["worker.actor.model.lora.rank=4"]}.items():
        own = ["data.max_response_length=6", "worker.actor.optim.lr=1e-2", "trainer.max_steps=2"]
        small_run(folder, folder / name, *own, *extra)
    return folder


def logits_of(model, prompt):
    """By transformers alone, of prompt and picture."""
    ids = torch.tensor([prompt.token_ids])
    inputs = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        return model.eval()(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **inputs
        ).logits


@pytest.fixture(scope="module")
def prompt(folder):
    policy = load_policy(folder / "model")
    return make_prompt(policy.model, policy.processor, "How many?", [random_image(56, 56)])


def exported(folder, run, *options):
    checkpoint, output = folder / run / "checkpoints" / "global_step_2", folder / f"out {run} {len(options)}"
    assert main(["--checkpoint", str(checkpoint), "--output", str(output), *options]) == 0
    return checkpoint, output


def test_the_model_is_the_policy_to_the_last_bit(folder, prompt):
    checkpoint, output = exported(folder, "whole")
    plain = AutoModelForImageTextToText.from_pretrained(output)
    start = AutoModelForImageTextToText.from_pretrained(folder / "model")
    policy = AutoModelForImageTextToText.from_pretrained(checkpoint / "policy")
    assert torch.equal(logits_of(plain, prompt), logits_of(policy, prompt))
    assert (logits_of(plain, prompt) - logits_of(start, prompt)).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert AutoImageProcessor.from_pretrained(output).merge_size == 2
    tree = AnswerTree(prompt, ((5, 6, 7),))
    assert torch.equal(
        answer_logprobs(load_policy(output), [tree])[0], answer_logprobs(load_policy(checkpoint / "policy"), [tree])[0]
    )


def test_adapters_and_the_merged_model_say_the_same(folder, prompt):
    _, adapter = exported(folder, "lora")
    _, merged = exported(folder, "lora", "--merge-lora")
    assert not (adapter / "model.safetensors").exists()
    assert AutoTokenizer.from_pretrained(adapter).chat_template
    base = AutoModelForImageTextToText.from_pretrained(folder / "model")
    before = logits_of(base, prompt)
    beside = logits_of(peft.PeftModel.from_pretrained(base, adapter), prompt)
    torch.testing.assert_close(
        beside, logits_of(AutoModelForImageTextToText.from_pretrained(merged), prompt), rtol=0, atol=2e-5
    )
    assert (beside - before).abs().max() > 1e-3


def test_a_run_s_folder_is_its_newest_checkpoint(folder, tmp_path, capsys):
    assert main(["--checkpoint", str(folder / "whole"), "--output", str(tmp_path / "out")]) == 0
    assert "global_step_2" in capsys.readouterr().out


REFUSED = {
    "no checkpoint": (["--checkpoint", "{folder}/model", "--output", "{tmp}/out"], "neither a global_step_N folder"),
    "no adapters": (["--checkpoint", "{folder}/whole", "--output", "{tmp}/out", "--merge-lora"], "holds no adapters"),
    "an output that is there": (["--checkpoint", "{folder}/whole", "--output", "{folder}"], "is there already"),
    "an output that cannot be": (["--checkpoint", "{folder}/whole", "--output", "/dev/null/out"], "cannot be written"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_one_line(folder, tmp_path, capsys, words, message):
    assert main([word.format(folder=folder, tmp=tmp_path) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_refused(folder, tmp_path, capsys):
    copy = shutil.copytree(folder / "whole" / "checkpoints" / "global_step_2", tmp_path / "global_step_2")
    with (copy / "policy" / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\1")
    assert main(["--checkpoint", str(copy), "--output", str(tmp_path / "out")]) == 2
    assert "is damaged: policy/model.safetensors" in capsys.readouterr().err
