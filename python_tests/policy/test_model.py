"""Loading and saving model folders; what a bad folder says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree, UserError
from python_tests.models import FAMILIES, VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_loads_in_plain_transformers_with_the_same_logits(family: str, tmp_path: Path) -> None:
    policy = load_policy(build_tiny_model(family, tmp_path / "model"))
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)  # as if trained
    policy.save(tmp_path / "saved")
    auto_class = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    plain = auto_class.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([tokenizer.encode("how many?")])
    assert torch.equal(plain(ids).logits, policy.model(ids).logits)
    assert tokenizer.chat_template == policy.processor.tokenizer.chat_template
    assert plain.generation_config.eos_token_id == policy.model.generation_config.eos_token_id


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_saved_folder_reads_pictures_alike(family: str, tmp_path: Path) -> None:
    policy = load_policy(build_tiny_model(family, tmp_path / "model"), max_pixels=100 * 100)
    policy.save(tmp_path / "saved")
    again = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    image = random_image(200, 150)
    ours = policy.processor.image_processor(images=[image], return_tensors="pt")
    theirs = again(images=[image], return_tensors="pt")
    height, width = (ours["image_grid_thw"][0, 1:] * again.patch_size).tolist()
    assert height * width <= 100 * 100
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_vision_tower_equals_plain_transformers(family: str, tmp_path: Path) -> None:
    policy = load_policy(build_tiny_model(family, tmp_path))
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path)
    prompt = make_prompt(policy.model, policy.processor, "how many?", [random_image(84, 84), random_image(140, 90, 1)])
    features = []
    for model in (policy.model, plain):
        pooled = model.model.get_image_features(prompt.pixel_values, prompt.image_grid_thw).pooler_output
        features.append(torch.cat(pooled))
        features[-1].sum().backward()
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-5)
    gradients = [model.model.visual.patch_embed.proj.weight.grad for model in (policy.model, plain)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_saving_over_a_folder_replaces_its_weights(tmp_path: Path) -> None:
    policy = load_policy(build_tiny_model("qwen2", tmp_path / "model"))
    policy.save(tmp_path / "saved")
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    policy.save(tmp_path / "saved")
    assert load_policy(tmp_path / "saved").model.lm_head.weight.abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_and_turn_starts_are_banned_and_ends_stop(family: str, tmp_path: Path) -> None:
    processor = load_policy(build_tiny_model(family, tmp_path)).processor
    banned = set(processor.tokenizer.convert_ids_to_tokens(list(processor.banned_ids)))
    assert banned == {
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    }
    assert processor.tokenizer.convert_ids_to_tokens(list(processor.stop_ids)) == ["<|endoftext|>", "<|im_end|>"]


def test_bfloat16_policy_gives_float32_logprobs(tmp_path: Path) -> None:
    policy = load_policy(build_tiny_model("qwen2_5_vl", tmp_path), dtype="bfloat16")
    prompt = make_prompt(policy.model, policy.processor, "how many?", [random_image(84, 84)])
    logprobs, _ = answer_logprobs(policy, [AnswerTree(prompt, ((70, 71, 72),))])
    assert logprobs.dtype == torch.float32
    assert torch.isfinite(logprobs).all()


def break_folder(folder: Path, how: str) -> None:
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif how == "unsupported model type":
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "truncated weights":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    elif how == "no image processor":
        (folder / "preprocessor_config.json").unlink()


BROKEN = {
    "no config": "no config.json",
    "config is no JSON": "config.json cannot be read",
    "unsupported model type": "'gpt2' is not supported; use one of qwen2_vl",
    "no weights": "weights cannot be loaded",
    "truncated weights": "weights cannot be loaded",
    "no tokenizer": "no tokenizer; put tokenizer.json",
    "no image processor": "image processor cannot be loaded",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_named_in_one_line(how: str, tmp_path: Path) -> None:
    folder = build_tiny_model("qwen2_5_vl", tmp_path / "model")
    break_folder(folder, how)
    with pytest.raises(UserError) as caught:
        load_policy(folder)
    message = str(caught.value)
    assert BROKEN[how] in message
    assert str(folder) in message
    assert "\n" not in message


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"\./nowhere: no such folder; give a Hugging Face model folder or a hub name"):
        load_policy("./nowhere")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = build_tiny_model("qwen2", tmp_path / "model")
    deeper = json.loads((folder / "config.json").read_text())
    deeper["num_hidden_layers"] = 3
    deeper["layer_types"] = ["full_attention"] * 3
    (folder / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(UserError, match=r"weights are missing, model\.layers\.2"):
        load_policy(folder)


def test_an_attention_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="attn_implementation=eager: no such attention is known; use one of sdpa, "):
        load_policy(tmp_path, attn_implementation="eager")


@pytest.mark.parametrize("name", ["flash_attention_2", "flex"])
def test_without_packed_trees_every_attention_is_sdpa(name: str, tmp_path: Path) -> None:
    build_tiny_model("qwen2_5_vl", tmp_path)
    policies = [load_policy(tmp_path, attn_implementation=choice) for choice in ("sdpa", name)]
    ids = torch.tensor([policies[0].processor.tokenizer.encode("how many?")])
    assert torch.equal(policies[1].model(ids).logits, policies[0].model(ids).logits)


def test_old_processor_folders_keep_their_files(tmp_path: Path) -> None:
    folder = build_tiny_model("qwen2_5_vl", tmp_path / "model")
    shutil.copyfile(folder / "preprocessor_config.json", folder / "video_preprocessor_config.json")
    load_policy(folder).save(tmp_path / "saved")
    assert (tmp_path / "saved" / "video_preprocessor_config.json").is_file()
