"""The model folder in plain transformers: its tokenizer, its processor, its size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

import diva_engine  # isort: skip  # noqa: F401 - before transformers: it lets torchvision be imported beside a CPU torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from diva_engine.demo import gym, tiles
from diva_engine.demo.model import make_model, make_tokenizer, save_model_folder
from diva_engine.demo.vocabulary import HINT, ROTATED, vocabulary

SENTENCES = {
    "plain": "<think> 13 + purple 6 = 19 ; green 7 = 6 ; </think> \\boxed{ 6 }",
    "negative": "<think> 4 - 7 = -3 ; </think> \\boxed{ -3 }",
    "angles": "<think> the angles sum to 540 ; 540 - 86 = 454 ; </think> \\boxed{ 454 }",
}
CONVERSATION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is 3 + red modulo 20?"}]}
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    save_model_folder(place, make_model(tokenizer, seed=0), tokenizer)
    return place


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_an_answer_decodes_to_itself(folder: Path, sentence: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(sentence)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == sentence


def test_the_beginning_of_an_answer_is_the_beginning_of_its_tokens() -> None:
    tokenizer = make_tokenizer()
    question = tiles.draw_questions("train", {4: 1})[0]
    whole = tokenizer(question.solution)["input_ids"]
    for shown in range(1, len(question.steps) + 1):
        prefix = tokenizer("<think> " + " ".join(question.steps[:shown]))["input_ids"]
        assert whole[: len(prefix)] == prefix


def test_no_word_of_any_question_is_unknown() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    tokenizer = make_tokenizer()
    questions = tiles.draw_questions("train", dict.fromkeys(tiles.LEVELS, 2))
    for source in (gym.Polygons(), gym.Sums()):
        questions += gym.draw_questions(source, {"train": 2})["train"]
    texts = [tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)]
    for question in questions:
        texts += [question.problem, *question.paraphrases, question.solution]
        texts += [question.problem + HINT.format(steps=" ".join(question.steps)) + ROTATED]
    for text in texts:
        assert tokenizer.unk_token_id not in tokenizer(text.replace("<image>", ""))["input_ids"], text


def test_a_word_is_one_token_and_no_token_stands_twice() -> None:
    words = vocabulary()
    assert len(set(words)) == len(words)
    assert make_tokenizer().convert_tokens_to_ids(words) == list(range(len(words)))


def test_an_unknown_word_becomes_the_unknown_token() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer("xylophone red")["input_ids"] == tokenizer.convert_tokens_to_ids(["<unk>", "red"])


def test_the_model_loads_with_its_own_size(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(("side", "patches"), [(84, 6), (112, 8), (28, 4), (280, 16)], ids=str)
def test_drawn_images_keep_their_size_and_others_are_bounded(folder: Path, side: int, patches: int) -> None:
    processor = AutoImageProcessor.from_pretrained(folder)
    grid = processor(images=[Image.new("RGB", (side, side))], return_tensors="pt")["image_grid_thw"]
    assert grid.tolist() == [[1, patches, patches]]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="video processors need torchvision")
def test_the_whole_processor_prepares_what_the_model_reads(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (84, 84))], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 9
    with torch.inference_mode():
        assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], len(processor.tokenizer))
