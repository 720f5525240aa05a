"""AdamW's moments kept in host memory between optimizer steps: nothing but their place is another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.policy.model import load_policy
from diva_engine.policy.sharding import shard_policy
from diva_engine.records import Credit
from diva_engine.settings import build_config
from diva_engine.trainer.host_moments import HostMoments
from diva_engine.trainer.optimizer_state import MOMENTS
from diva_engine.trainer.sharded_tensors import copy_to_host, read_tensors, write_tensors
from diva_engine.trainer.update import Updater
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.ranks import on_ranks
from python_tests.scored import ANY_LOGPROBS, make_group

OFFLOAD = {"worker.actor.offload.offload_optimizer": True}
CREDIT = Credit(torch.tensor([1.0, -0.5, 0.25]), torch.zeros(1))


def make_updater(folder, *, is_moved, dtype="float32", device="cpu", is_cut=False):
    policy = load_policy(folder, dtype=dtype, device=device)
    if is_cut:
        policy = shard_policy(policy, device=torch.device(device), compute_dtype=getattr(torch, dtype))
    settings = {"worker.actor.optim.lr": 1e-2, "worker.actor.model.torch_dtype": dtype} | ANY_LOGPROBS
    updater = Updater(policy, clipped_policy_loss, build_config(settings | (OFFLOAD if is_moved else {})), num_steps=4)
    if is_moved and device == "cpu":  # where the setting has nothing to move: the same copies, from CPU to CPU
        assert updater.host_moments is None
        updater.host_moments = HostMoments(updater.optimizer)
    return updater


def train(updater, num_updates=2):
    policy = updater.policy
    prompt = make_prompt(policy.model, policy.processor, "How many?", [random_image(56, 56)])
    for _ in range(num_updates):
        updater.update([make_group([1.0, 0.0, 1.0], lengths=[3, 5, 2], prompt=prompt)], CREDIT)
    return updater


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assert_same(one: Updater, other: Updater) -> None:
    """Masters, moments and weights, bit for bit, wherever they lie."""
    pairs = [(updater.tensors(), dict(updater.policy.model.named_parameters())) for updater in (one, other)]
    for expected, found in zip(*pairs, strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(local(found[name]).detach().cpu(), local(tensor).detach().cpu()), name
    assert any(name.startswith("exp_avg_sq/") and local(t).abs().max() > 0 for name, t in one.tensors().items())


def check_on_each_rank(folder, where, num_ranks):
    """Two updates, a checkpoint, a new updater that goes on from it; with and without."""
    for dtype in ("float32", "bfloat16"):
        options = {"dtype": dtype, "is_cut": num_ranks > 0}
        plain, moved = (make_updater(folder, is_moved=is_moved, **options) for is_moved in (False, True))
        assert_same(train(plain), train(moved))
        checkpoint = where / dtype
        checkpoint.mkdir(exist_ok=True)
        write_tensors(checkpoint, copy_to_host(moved.tensors()))
        resumed = make_updater(folder, is_moved=True, **options)
        resumed.load_state_dict(moved.state_dict(), lambda tensors, at=checkpoint: read_tensors(at, tensors))
        resumed.policy.model.load_state_dict(moved.policy.model.state_dict())
        assert_same(moved, resumed)
        places = places_of(resumed)
        resumed.host_moments.put_away()
        assert places_of(resumed) == places, "they had been put away"
        assert_same(train(plain), train(resumed))


@pytest.mark.parametrize(
    "num_ranks", [pytest.param(0, id="whole weights"), pytest.param(2, id="cut over two", marks=pytest.mark.slow)]
)
def test_moved_moments_train_the_same_and_go_on_in_the_middle(num_ranks, tmp_path):
    folder = build_tiny_model("qwen2_5_vl", tmp_path / "model", hidden_size=32)
    if num_ranks:
        on_ranks(num_ranks, check_on_each_rank, folder, tmp_path, num_ranks)
    else:
        check_on_each_rank(folder, tmp_path, num_ranks)


def places_of(updater):
    return {
        (name, moment): local(state[moment]).data_ptr()
        for name, state in enumerate(updater.optimizer.state.values())
        for moment in MOMENTS
    }


def test_between_steps_they_lie_in_host_memory_taken_once(tmp_path):
    updater = make_updater(build_tiny_model("qwen2_5_vl", tmp_path, hidden_size=32), is_moved=True)
    during = []
    updater.optimizer.register_step_pre_hook(lambda *_: during.append(places_of(updater)))
    between = [places_of(train(updater, 1)) for _ in range(3)]
    assert between[0]
    assert between[0] == between[1] == between[2], "the same memory every time"
    assert during[0] == {}, "AdamW makes them in its first step"
    assert all(during[2][key] != place for key, place in between[0].items()), "another storage in the step"
    copies = dict(updater.tensors())
    with updater.host_moments.on_device():
        assert all(torch.equal(copies[name], tensor) for name, tensor in updater.tensors().items())
        assert all(
            local(copies[n]).data_ptr() != local(t).data_ptr() for n, t in updater.tensors().items() if "exp" in n
        )


def test_a_step_that_fails_leaves_them_in_host_memory(tmp_path):
    updater = train(make_updater(build_tiny_model("qwen2_5_vl", tmp_path, hidden_size=32), is_moved=True))
    before = places_of(updater)
    with pytest.raises(RuntimeError, match="out of memory"), updater.host_moments.on_device():
        raise RuntimeError("out of memory")
    assert places_of(updater) == before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_they_are_pinned_and_nothing_else_changes(dtype, tmp_path):
    folder = build_tiny_model("qwen2_5_vl", tmp_path, hidden_size=32)
    plain, moved = (make_updater(folder, is_moved=m, dtype=dtype, device="cuda") for m in (False, True))
    assert moved.host_moments is not None
    assert_same(train(plain), train(moved))
    for state in moved.optimizer.state.values():
        assert all(state[moment].is_pinned() and not state[moment].is_cuda for moment in MOMENTS)
    assert all(state[moment].is_cuda for state in plain.optimizer.state.values() for moment in MOMENTS)
