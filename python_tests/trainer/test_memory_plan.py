"""The memory plan: sizes as published, phases as allocated, shares as cut, and a worst-case step beside it."""

from __future__ import annotations

import pytest
import torch

from diva_engine.dry_run import dry_run
from diva_engine.policy.model import read_model_config
from diva_engine.records import UserError
from diva_engine.rollout.kv_cache import KeyValueCache
from diva_engine.rollout.prefill import Prefill
from diva_engine.settings import load_config
from diva_engine.trainer.memory_plan import MemoryPlan, _cached_places, model_size, plan_memory
from diva_engine.trainer.policies import open_policy
from diva_engine.trainer.worst_step import take_worst_step
from python_tests.models import build_tiny_model
from python_tests.published_models import QWEN2_5_VL, qwen2_5_vl_config, write_config

SMALL = [
    "data.max_prompt_length=300",
    "data.max_response_length=100",
    "data.rollout_batch_size=16",
    "worker.rollout.n=8",
    "worker.actor.micro_batch_tokens=4096",
]


def plan(size: str, *settings: str, num_gpus: int = 1) -> MemoryPlan:
    config = load_config(["algorithm=grpo", *settings])
    return plan_memory(config, qwen2_5_vl_config(size), num_gpus, gpu_bytes=80 << 30)


@pytest.mark.parametrize("size", QWEN2_5_VL)
def test_parameters_are_those_of_the_published_model(size: str) -> None:
    assert model_size(qwen2_5_vl_config(size)).parameters == QWEN2_5_VL[size][0]


def test_what_a_float32_process_always_holds() -> None:
    always = plan("3B").phases["always"]
    assert always == {"weights": 4 * 3_754_622_976, "AdamW moments": 8 * 3_754_622_976}


def test_a_bfloat16_process_holds_masters_and_shards_do_not() -> None:
    bfloat16 = "worker.actor.model.torch_dtype=bfloat16"
    parameters = QWEN2_5_VL["3B"][0]
    alone, shared = plan("3B", bfloat16), plan("3B", bfloat16, num_gpus=8)
    assert alone.phases["always"]["weights"] == 2 * parameters
    assert alone.phases["always"]["float32 masters"] == 4 * parameters
    assert shared.phases["always"]["weights"] == 4 * parameters // 8
    assert "float32 masters" not in shared.phases["always"]
    assert shared.phases["always"]["AdamW moments"] * 8 == alone.phases["always"]["AdamW moments"]


def test_recomputed_activations_leave_each_layers_input() -> None:
    kept, again = plan("3B"), plan("3B", "worker.actor.model.enable_gradient_checkpointing=true")
    layers, one_layer = kept.size.layers, kept.phases["update"]["activations"] / kept.size.layers
    inputs = again.phases["update"]["activations"] - one_layer
    assert inputs % (4 * layers * kept.size.hidden) == 0, "a float32 input of every layer for each token"
    assert again.phases["update"]["activations"] < 0.2 * kept.phases["update"]["activations"]
    assert again.phases["update"]["vision activations"] < 0.2 * kept.phases["update"]["vision activations"]


def test_what_is_offloaded_lies_in_cpu_memory() -> None:
    parameters = QWEN2_5_VL["3B"][0]
    moved = plan("3B", "worker.actor.offload.offload_params=true", num_gpus=8)
    assert moved.host == {
        "weights": 4 * parameters // 8,
        "AdamW moments": 8 * parameters // 8,
        "gradients": 4 * parameters // 8,
    }
    assert set(moved.phases["always"]) == {"the native engine's weights"}
    assert "gradients" not in moved.phases["update"]


def test_offloaded_moments_come_back_for_the_optimizer_alone() -> None:
    plain, moved = plan("3B", num_gpus=8), plan("3B", "worker.actor.offload.offload_optimizer=true", num_gpus=8)
    num_bytes = 8 * QWEN2_5_VL["3B"][0] // 8
    assert moved.host == {"AdamW moments": num_bytes}
    less = {phase: plain.total(phase) - moved.total(phase) for phase in plain.phases}
    assert less == {"always": num_bytes, "rollout": num_bytes, "update": num_bytes, "optimizer": 0}


def test_groups_hold_a_copy_each() -> None:
    one, groups = (plan("3B", *words, num_gpus=8) for words in ((), ("worker.actor.fsdp.fsdp_size=2",)))
    for phase, items in one.phases.items():
        states = {name for name in items if name in ("weights", "AdamW moments", "gradients")}
        expected = {name: num_bytes * (4 if name in states else 1) for name, num_bytes in items.items()}
        assert groups.phases[phase] == expected, phase
    with pytest.raises(UserError, match=r"fsdp_size=3 does not divide the number of ranks, 8; take 1 or 2 or 4 or 8"):
        plan("3B", "worker.actor.fsdp.fsdp_size=3", num_gpus=8)


@pytest.mark.parametrize("settings", [[], ["freeze_vision_tower=true"], ["lora.target_modules=[q_proj,down_proj]"]])
def test_of_adapters_only_the_adapters_are_trained(settings: list[str], tmp_path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'diva-engine[lora]'")
    model = build_tiny_model("qwen2_5_vl", tmp_path)
    words = [f"worker.actor.model.{word}" for word in ["lora.rank=4", *settings]]
    config = load_config(["algorithm=grpo", f"model={model}", "trainer.device=cpu", *words])
    trained = sum(p.numel() for p in open_policy(config).model.parameters() if p.requires_grad)
    planned = plan_memory(config, read_model_config(model)[1])
    assert planned.phases["always"]["AdamW moments"] == 8 * trained
    assert planned.phases["always"]["the native engine's weights"] == 4 * planned.size.parameters


def test_vllm_has_weights_and_a_cache_of_its_share() -> None:
    rollout = plan("7B", "worker.rollout.engine=vllm", "worker.rollout.tensor_parallel_size=2", num_gpus=8).phases[
        "rollout"
    ]
    assert rollout["vLLM weights"] == 4 * QWEN2_5_VL["7B"][0] // 2
    assert sum(rollout.values()) == int(0.6 * (80 << 30))


def test_a_frozen_tower_has_no_moments_no_gradients_and_no_activations() -> None:
    trained, frozen = plan("3B"), plan("3B", "worker.actor.model.freeze_vision_tower=true")
    assert trained.phases["always"]["AdamW moments"] - frozen.phases["always"]["AdamW moments"] == (
        8 * trained.size.vision
    )
    assert trained.phases["update"]["gradients"] - frozen.phases["update"]["gradients"] == 4 * trained.size.vision
    assert "vision activations" not in frozen.phases["update"]


def test_activations_grow_with_the_micro_batch_and_the_cache_with_the_rows() -> None:
    small, large = (plan("3B", f"worker.actor.micro_batch_tokens={tokens}") for tokens in (20_000, 60_000))
    assert large.phases["update"]["activations"] == pytest.approx(3 * small.phases["update"]["activations"], rel=0.01)
    few, many = (plan("3B", f"worker.rollout.max_batch_rows={rows}") for rows in (64, 256))
    assert many.phases["rollout"]["KV cache of answers"] == 4 * few.phases["rollout"]["KV cache of answers"]


@pytest.mark.parametrize("num_tokens", [10, 64, 65, 300])
def test_a_cache_holds_as_many_places_as_planned(num_tokens: int) -> None:
    one = torch.zeros(1, 1, 2, 4)
    prompts = Prefill([one], [one], torch.ones(1, 2, dtype=torch.bool), torch.zeros(1), torch.zeros(1, 3))
    cache = KeyValueCache(prompts, torch.zeros(1, dtype=torch.int64))
    for _ in range(num_tokens):
        cache.open_place()
    assert cache._own[0].shape[2] <= _cached_places(num_tokens) <= 2 * cache._own[0].shape[2]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2"])
def test_a_worst_case_step_takes_what_was_predicted_within_a_factor_of_two(family: str, tmp_path) -> None:
    model = build_tiny_model(family, tmp_path, hidden_size=256, num_layers=4, vision_size=128, max_image_tokens=256)
    config = load_config(["algorithm=grpo", f"model={model}", *SMALL])
    found = plan_memory(config, read_model_config(model)[1], max_pixels=256 * 28 * 28)
    measured = take_worst_step(config, found.step)
    for phase, num_bytes in measured.items():
        assert 0.5 < found.total(phase) / num_bytes < 2, (phase, found.total(phase), num_bytes)


def test_without_weights_the_plan_is_printed_for_any_number_of_gpus(tmp_path, capsys) -> None:
    folder = write_config("7B", tmp_path)
    dry_run(["--dry-run", "--gpus", "8", f"model={folder}", "worker.actor.model.torch_dtype=bfloat16"])
    printed = capsys.readouterr().out
    assert "8.29 billion parameters (0.68 of the vision tower)" in printed
    assert "GiB on each of 8 GPUs" in printed
    assert "which does not fit 80; mostly" in printed
    dry_run(["--dry-run", f"model={folder}"])
    assert "the weights are not at hand: no worst-case step is taken" in capsys.readouterr().out


def test_what_cannot_be_planned_is_said_in_words(tmp_path) -> None:
    with pytest.raises(UserError, match="model_path is empty"):
        dry_run(["--dry-run", "algorithm=grpo"])
    with pytest.raises(UserError, match=r"no config\.json"):
        dry_run(["--dry-run", f"model={tmp_path}"])
