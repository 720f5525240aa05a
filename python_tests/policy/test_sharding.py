"""Weights cut over two ranks compute what whole ones do; one rank without work lends its part."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diva_engine.distributed import current_world
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import load_policy
from diva_engine.policy.sharding import shard_policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import AnswerTree
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.ranks import on_ranks

# Largest distance of a log-probability, and of a gradient as a share of the tensor's largest.
TOLERANCE = {"float32": (0.0, 0.0), "bfloat16": (0.02, 0.05)}


def tie_embeddings(folder):
    """The checkpoint as one whose language-model head is its embedding."""
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    config.get("text_config", {})["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def gradients(policy):
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


def tree_of(policy):
    images = [random_image(56, 56)] if policy.processor.image_processor else []
    return AnswerTree(make_prompt(policy.model, policy.processor, "How many?", images), ((5, 6, 7, 8), (5, 9)))


def compare(folders, groupings):
    for folder, ranks_a_copy in itertools.product(folders, groupings):
        for dtype, tolerances in TOLERANCE.items():
            compare_one(folder, dtype, ranks_a_copy, *tolerances)


def compare_one(folder, dtype, ranks_a_copy, logprob_tolerance, gradient_tolerance):
    plain, cut = load_policy(folder, dtype=dtype), load_policy(folder, dtype=dtype)
    options = {"compute_dtype": getattr(torch, dtype), "ranks_a_copy": ranks_a_copy}
    cut = shard_policy(cut, device=torch.device("cpu"), **options)
    assert {p.dtype for p in cut.model.parameters()} == {torch.float32}
    held = sum(p.to_local().numel() for p in cut.model.parameters())
    share = sum(p.numel() for p in plain.model.parameters()) / (ranks_a_copy or current_world().size)
    assert held == pytest.approx(share, rel=0.1), "rows that do not divide lie with the first ranks"
    tree = tree_of(plain)
    logprob, _ = answer_logprobs(cut, [tree] if current_world().is_first else [])
    expected, _ = answer_logprobs(plain, [tree])
    if current_world().is_first:
        torch.testing.assert_close(logprob, expected, rtol=0, atol=logprob_tolerance)
    logprob.sum().backward()
    expected.sum().backward()
    found, wanted = gradients(cut), gradients(plain)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        largest = gradient.float().abs().max().clamp(min=1e-3)
        assert (found[name].full_tensor() - gradient.float()).abs().max() <= gradient_tolerance * largest, name
    for name, weight in full_weights(cut):
        assert torch.equal(weight, plain.model.state_dict()[name]), name


RANKS = [
    (1, [None]),
    (2, [None, 1]),  # cut over both, and a copy a rank
    pytest.param(4, [2], marks=pytest.mark.slow),  # two groups of two
]


@pytest.mark.parametrize(("num_ranks", "groupings"), RANKS)
def test_shards_compute_what_whole_weights_do(tmp_path, num_ranks, groupings):
    folders = [
        build_tiny_model("qwen3_vl", tmp_path / "sees", hidden_size=32),
        tie_embeddings(build_tiny_model("qwen2_5_vl", tmp_path / "tied", hidden_size=32)),
        build_tiny_model("llama", tmp_path / "text", hidden_size=32),
    ]
    on_ranks(num_ranks, compare, folders, groupings)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3"])
def test_recomputed_activations_give_the_same_gradients(family, tmp_path):
    folder = build_tiny_model(family, tmp_path, hidden_size=32)
    pair = [load_policy(folder, enable_gradient_checkpointing=enable) for enable in (False, True)]
    saved = []
    for policy in pair:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            logprob, _ = answer_logprobs(policy, [tree_of(policy)])
        logprob.sum().backward()
        saved.append(sum(sizes))
    plain, recomputed = map(gradients, pair)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert saved[1] < 0.6 * saved[0], "a layer's activations are not kept"
