"""The launches of the extra cuda-jit, on the emulated kernels: each argument is read from the address the driver is
given, by the type of the kernel's own parameter. Results are those of the CPU op."""

from __future__ import annotations

import ctypes

import pytest
import torch

from diva_engine import ops
from diva_engine.ops import cuda_jit, run_time_compiler
from diva_engine.ops.diva_advantage import BALANCES
from diva_engine.ops.update_difficulty import RULES
from python_tests.emulation import kernels
from python_tests.ops import ragged

OPS = ("group_stats", "update_difficulty", "diva_advantage", "shared_std_advantage")
DRIVER = """
#include <utility>
namespace driver {
template <typename... P, size_t... I>
void run(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}
template <typename... P>
void launch(void (*kernel)(P...), bool is_cooperative, unsigned blocks, unsigned threads, void** arguments) {
  const auto body = [=] { run(kernel, arguments, std::index_sequence_for<P...>{}); };
  is_cooperative ? emulation::launch_cooperative(blocks, threads, 0, body)
                 : emulation::launch(blocks, threads, 0, body);
}
template <typename... P>
int sizes(void (*)(P...), int64_t* into) {
  ((*into++ = sizeof(P)), ...);
  return sizeof...(P);
}
}  // namespace driver
"""
ENTRY = """
extern "C" void launch_{op}(bool is_cooperative, unsigned blocks, unsigned threads, void** arguments) {{
  driver::launch(diva::{op}_kernel, is_cooperative, blocks, threads, arguments);
}}
extern "C" int sizes_{op}(int64_t* into) {{ return driver::sizes(diva::{op}_kernel, into); }}
"""
MOST_BLOCKS = 3  # of a cooperative grid; fewer than the work would take


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda_jit")
    driver = folder / "driver.cu"
    driver.write_text(DRIVER + "".join(ENTRY.format(op=op) for op in OPS))
    return kernels.emulate(folder, *(f"{op}/{op}_cuda.cu" for op in OPS), str(driver))


@pytest.fixture(autouse=True)
def launched(library, monkeypatch):
    """Sends launches to the emulation, and keeps a list of them."""
    names = []

    def launch(kernel, blocks, arguments, device):
        assert device.type == "cpu"
        sizes = (ctypes.c_int64 * 32)()
        count = library[f"sizes_{kernel.op}"](sizes)
        assert [ctypes.sizeof(argument) for argument in arguments] == sizes[:count]
        addresses = (ctypes.c_void_p * count)(*(ctypes.addressof(argument) for argument in arguments))
        blocks = min(blocks, MOST_BLOCKS) if kernel.is_cooperative else blocks
        library[f"launch_{kernel.op}"](kernel.is_cooperative, blocks, kernel.threads, addresses)
        names.append(kernel.name)

    monkeypatch.setattr(run_time_compiler, "launch", launch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return names


SIZES = {
    "nothing": [],
    "an empty group": [0],
    "one": [1],
    "ragged": [5, 0, 1, 33, 5, 5, 2, 64, 7],
    "many": [5] * 300,
}


def rewards_and_offsets(sizes):
    return ragged.rewards(sum(sizes)), torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int64)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_group_stats(sizes, launched):
    values, offsets = rewards_and_offsets(sizes)
    for of_cuda, of_cpu in zip(cuda_jit.group_stats(values, offsets), ops.group_stats(values, offsets), strict=True):
        assert torch.equal(of_cuda, of_cpu)
    assert launched == (["group_stats_kernel"] if sizes else [])


@pytest.mark.parametrize("rule", range(len(RULES)))
def test_update_difficulty(rule):
    table = torch.linspace(1, 9, 3000).view(1000, 3)[:, 1]  # entries apart
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:600]
    accuracy = torch.rand(600, generator=torch.Generator().manual_seed(2))
    of_cpu = table.clone()
    updated = cuda_jit.update_difficulty(table, index, accuracy, 4.0, 1.0, 9.0, rule)
    assert torch.equal(updated, ops.update_difficulty(of_cpu, index, accuracy, rule=RULES[rule]))
    assert torch.equal(table, of_cpu)


def test_a_repeated_index_is_told():
    with pytest.raises(RuntimeError, match="update_difficulty: index 3 stands more than once"):
        cuda_jit.update_difficulty(torch.ones(5), torch.tensor([3, 1, 3]), torch.ones(3), 4.0, 1.0, 9.0, 0)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(("weight", "rrb"), [("global", "range"), ("both", "threshold"), ("none", "none")])
@pytest.mark.parametrize("questions", [[3, 0, 1, 4, 1], [2] * 40], ids=["ragged", "many"])
def test_diva_advantage(balance, weight, rrb, questions):
    rewards, prompt_offsets = rewards_and_offsets([5, 4, 1, 0, 7, 33, 5, 5, 2] if len(questions) == 5 else [5] * 80)
    question_offsets = torch.tensor([0, *torch.tensor(questions).cumsum(0).tolist()])
    difficulty = torch.linspace(1, 9, sum(questions))
    lengths = torch.arange(len(rewards)) % 50 + 1
    arguments = (rewards, prompt_offsets, question_offsets, difficulty)
    options = (0.2, ("global", "both", "none").index(weight), ("range", "threshold", "none").index(rrb), 1.5)
    of_cuda = cuda_jit.diva_advantage(*arguments, *options, False, 1e-5, BALANCES.index(balance), lengths, 64, 0.7, 1.3)
    of_cpu = ops.diva_advantage(
        *arguments,
        k=0.2,
        weight=weight,
        rrb=rrb,
        r_max=1.5,
        std="population",
        eps=1e-5,
        balance=balance,
        lengths=lengths,
        max_length=64,
        w_local=0.7,
        w_global=1.3,
    )
    for one, other in zip(of_cuda, of_cpu, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_bins", [1, 4, 31])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_shared_std_advantage(sizes, num_bins):
    rewards, offsets = rewards_and_offsets(sizes)
    bins = torch.arange(len(sizes)) % num_bins
    of_cuda = cuda_jit.shared_std_advantage(rewards, offsets, bins, num_bins, 1e-6)
    of_cpu = ops.shared_std_advantage(rewards, offsets, bins, num_bins, 1e-6)
    torch.testing.assert_close(of_cuda, of_cpu, rtol=1e-6, atol=1e-6)


REWARDS, OFFSETS = torch.ones(4), torch.tensor([0, 4])
REFUSALS = {
    "values must be torch.float32 on CUDA, not torch.float64": lambda: cuda_jit.group_stats(REWARDS.double(), OFFSETS),
    "values must have one dimension, not 2": lambda: cuda_jit.group_stats(REWARDS.view(2, 2), OFFSETS),
    "offsets must be torch.int64": lambda: cuda_jit.group_stats(REWARDS, OFFSETS.int()),
    "offsets must have at least one entry": lambda: cuda_jit.group_stats(REWARDS, OFFSETS[:0]),
    "offsets must be on the same device": lambda: cuda_jit.group_stats(REWARDS, OFFSETS.to("meta")),
    "bin_of_prompt must have 1 entries, not 4": lambda: cuda_jit.shared_std_advantage(
        REWARDS, OFFSETS, torch.arange(4), 4, 1e-6
    ),
    "num_bins must be at least 1, not 0": lambda: cuda_jit.shared_std_advantage(
        REWARDS, OFFSETS, torch.zeros(1, dtype=torch.int64), 0, 1e-6
    ),
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refuses(words):
    with pytest.raises(RuntimeError, match=words):
        REFUSALS[words]()
