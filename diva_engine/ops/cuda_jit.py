"""CUDA ops for a library that was built without nvcc, their kernels compiled at run time: the extra cuda-jit.

Each function here does what `on_cuda` in csrc/<op>/<op>.cpp and the launcher in csrc/<op>/<op>_cuda.cu do together.
The other ops still refuse CUDA tensors, with the command that builds them.
"""

from __future__ import annotations

import ctypes
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

import diva_engine
from diva_engine.ops import run_time_compiler
from diva_engine.ops.run_time_compiler import Kernel

LANES = 32
GROUP_STATS = Kernel("group_stats", "group_stats_kernel", 256)
UPDATE_DIFFICULTY = Kernel("update_difficulty", "update_difficulty_kernel", 256)
DIVA_ADVANTAGE = Kernel("diva_advantage", "diva_advantage_kernel", 256, is_cooperative=True)
DIVA_MAX_BLOCKS = 512
PADDED_TOKENS = 1  # Balance::kPaddedTokens
SHARED_STD_ADVANTAGE = Kernel("shared_std_advantage", "shared_std_advantage_kernel", 256, is_cooperative=True)

FLOAT, DOUBLE, INT64, POINTER = ctypes.c_float, ctypes.c_double, ctypes.c_int64, ctypes.c_void_p


class DifficultyTable(ctypes.Structure):
    _fields_ = (("levels", POINTER), ("stride", INT64), ("size", INT64))


class DifficultySettings(ctypes.Structure):
    _fields_ = (("eta", FLOAT), ("low", FLOAT), ("high", FLOAT), ("rule", INT64))


class DivaInput(ctypes.Structure):
    _fields_ = (
        ("rewards", POINTER),
        ("prompt_offsets", POINTER),
        ("question_offsets", POINTER),
        ("difficulty", POINTER),
        ("lengths", POINTER),
        ("num_rollouts", INT64),
        ("num_prompts", INT64),
        ("num_questions", INT64),
    )


class DivaOptions(ctypes.Structure):
    _fields_ = (
        ("k", DOUBLE),
        ("weight", INT64),
        ("rrb", INT64),
        ("r_max", DOUBLE),
        ("sample_std", ctypes.c_bool),
        ("eps", DOUBLE),
        ("balance", INT64),
        ("max_length", INT64),
        ("w_local", DOUBLE),
        ("w_global", DOUBLE),
    )


class DivaOutput(ctypes.Structure):
    _fields_ = (("advantage", POINTER), ("local", POINTER), ("global_", POINTER))


class BatchSums(ctypes.Structure):
    _fields_ = (("sum", DOUBLE), ("squares", DOUBLE), ("largest", DOUBLE))


class GroupScale(ctypes.Structure):
    _fields_ = (("mean", FLOAT), ("inverse", FLOAT), ("fade", FLOAT), ("difficulty", FLOAT))


class SharedStdInput(ctypes.Structure):
    _fields_ = (
        ("rewards", POINTER),
        ("prompt_offsets", POINTER),
        ("bin_of_prompt", POINTER),
        ("num_rollouts", INT64),
        ("num_prompts", INT64),
        ("num_bins", INT64),
    )


class BinMoments(ctypes.Structure):
    _fields_ = (("count", DOUBLE), ("mean", DOUBLE), ("squares", DOUBLE), ("min", DOUBLE), ("max", DOUBLE))


def is_wanted() -> bool:
    """Whether torch has CUDA, this library has not, and CuPy is installed, which is what asks for this way."""
    if torch.version.cuda is None or find_spec("cupy") is None:
        return False
    return diva_engine.build_info()["cuda"] is None


def register() -> torch.library.Library:
    """Puts the ops of this file in the place of those that refuse. They last as long as what is returned."""
    library = torch.library.Library("diva_engine", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that one kernel replaces another
        for op in (group_stats, update_difficulty, diva_advantage, shared_std_advantage):
            library.impl(op.__name__, op, "CUDA")
    return library


def group_stats(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values = _vector(values, torch.float32, "group_stats: values", values.device)
    offsets = _offsets(offsets, "group_stats: offsets", values.device)
    num_groups = len(offsets) - 1
    mean, std, low, high = (values.new_empty(num_groups) for _ in range(4))
    if num_groups:
        arguments = (_pointer(values), INT64(len(values)), _pointer(offsets), INT64(num_groups))
        outputs = (_pointer(mean), _pointer(std), _pointer(low), _pointer(high))
        blocks = _blocks(num_groups, GROUP_STATS.threads // LANES)
        run_time_compiler.launch(GROUP_STATS, blocks, (*arguments, *outputs), values.device)
    return mean, std, low, high


def update_difficulty(
    table: Tensor, index: Tensor, accuracy: Tensor, eta: float, low: float, high: float, rule: int
) -> Tensor:
    _vector(table, torch.float32, "update_difficulty: table", table.device)  # for its checks; a copy is not in place
    index = _vector(index, torch.int64, "update_difficulty: index", table.device)
    accuracy = _vector(accuracy, torch.float32, "update_difficulty: accuracy", table.device)
    _check_length(accuracy, len(index), "update_difficulty: accuracy")
    updated = torch.empty_like(accuracy)
    if not len(index):
        return updated
    arguments = (
        DifficultyTable(table.data_ptr(), table.stride(0), len(table)),
        _pointer(index),
        _pointer(accuracy),
        INT64(len(index)),
        DifficultySettings(eta, low, high, rule),
        _pointer(updated),
    )
    blocks = _blocks(len(index), UPDATE_DIFFICULTY.threads)
    run_time_compiler.launch(UPDATE_DIFFICULTY, blocks, arguments, table.device)
    if not torch.cuda.is_current_stream_capturing() and updated.isnan().any():
        # A bad entry shows as NaN. The CPU op, given copies, refuses it with its value.
        op = torch.ops.diva_engine.update_difficulty.default
        op(table.to("cpu", copy=True), index.cpu(), accuracy.cpu(), eta, low, high, rule)
    return updated


def diva_advantage(
    rewards: Tensor,
    prompt_offsets: Tensor,
    question_offsets: Tensor,
    difficulty: Tensor,
    k: float,
    weight: int,
    rrb: int,
    r_max: float,
    sample_std: bool,
    eps: float,
    balance: int,
    lengths: Tensor | None,
    max_length: int,
    w_local: float,
    w_global: float,
) -> tuple[Tensor, Tensor, Tensor]:
    device = rewards.device
    rewards = _vector(rewards, torch.float32, "diva_advantage: rewards", device)
    prompt_offsets = _offsets(prompt_offsets, "diva_advantage: prompt_offsets", device)
    question_offsets = _offsets(question_offsets, "diva_advantage: question_offsets", device)
    difficulty = _vector(difficulty, torch.float32, "diva_advantage: difficulty", device)
    num_prompts, num_questions = len(prompt_offsets) - 1, len(question_offsets) - 1
    _check_length(difficulty, num_prompts, "diva_advantage: difficulty")
    lengths = _checked_lengths(lengths, rewards) if balance == PADDED_TOKENS else None

    advantage, local, global_ = (torch.empty_like(rewards) for _ in range(3))
    if num_questions:
        block_sums = _scratch(2 * DIVA_MAX_BLOCKS, BatchSums, device)
        prompts, questions = (_scratch(count, GroupScale, device) for count in (num_prompts, num_questions))
        tensors = (rewards, prompt_offsets, question_offsets, difficulty, lengths)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        arguments = (
            DivaInput(*pointers, len(rewards), num_prompts, num_questions),
            DivaOptions(k, weight, rrb, r_max, sample_std, eps, balance, max_length, w_local, w_global),
            DivaOutput(advantage.data_ptr(), local.data_ptr(), global_.data_ptr()),
            *(_pointer(scratch) for scratch in (block_sums, prompts, questions)),
        )
        blocks = min(_blocks(num_questions, DIVA_ADVANTAGE.threads // LANES), DIVA_MAX_BLOCKS)
        run_time_compiler.launch(DIVA_ADVANTAGE, blocks, arguments, device)
    return advantage, local, global_


def _checked_lengths(lengths: Tensor | None, rewards: Tensor) -> Tensor:
    if lengths is None:
        raise RuntimeError("diva_advantage: balance padded_tokens needs lengths")
    lengths = _vector(lengths, torch.int64, "diva_advantage: lengths", rewards.device)
    _check_length(lengths, len(rewards), "diva_advantage: lengths")
    return lengths


def shared_std_advantage(
    rewards: Tensor, prompt_offsets: Tensor, bin_of_prompt: Tensor, num_bins: int, eps: float
) -> Tensor:
    device = rewards.device
    rewards = _vector(rewards, torch.float32, "shared_std_advantage: rewards", device)
    prompt_offsets = _offsets(prompt_offsets, "shared_std_advantage: prompt_offsets", device)
    bin_of_prompt = _vector(bin_of_prompt, torch.int64, "shared_std_advantage: bin_of_prompt", device)
    num_prompts = len(prompt_offsets) - 1
    _check_length(bin_of_prompt, num_prompts, "shared_std_advantage: bin_of_prompt")
    if num_bins < 1:
        raise RuntimeError(f"shared_std_advantage: num_bins must be at least 1, not {num_bins}")

    advantage = torch.empty_like(rewards)
    if num_prompts:
        prompts, inverse = _scratch(num_prompts, BinMoments, device), _scratch(num_bins, FLOAT, device)
        pointers = (tensor.data_ptr() for tensor in (rewards, prompt_offsets, bin_of_prompt))
        arguments = (
            SharedStdInput(*pointers, len(rewards), num_prompts, num_bins),
            DOUBLE(eps),
            *(_pointer(tensor) for tensor in (advantage, prompts, inverse)),
        )
        blocks = _blocks(max(num_prompts, num_bins), SHARED_STD_ADVANTAGE.threads // LANES)
        run_time_compiler.launch(SHARED_STD_ADVANTAGE, blocks, arguments, device)
    return advantage


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return POINTER(tensor.data_ptr())


def _blocks(count: int, each: int) -> int:
    return (count + each - 1) // each


def _scratch(count: int, kind: type, device: torch.device) -> Tensor:
    """Room for `count` of a C type; torch's memory is aligned for any."""
    return torch.empty(count * ctypes.sizeof(kind), dtype=torch.uint8, device=device)


def _vector(tensor: Tensor, dtype: torch.dtype, name: str, device: torch.device) -> Tensor:
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name} must be {dtype} on CUDA, not {tensor.dtype}")
    if tensor.dim() != 1:
        raise RuntimeError(f"{name} must have one dimension, not {tensor.dim()}")
    if tensor.device != device:
        raise RuntimeError(f"{name} must be on the same device as the other tensors")
    return tensor.contiguous()


def _offsets(offsets: Tensor, name: str, device: torch.device) -> Tensor:
    if len(vector := _vector(offsets, torch.int64, name, device)) < 1:
        raise RuntimeError(f"{name} must have at least one entry, the 0 at its start")
    return vector


def _check_length(tensor: Tensor, length: int, name: str) -> None:
    if len(tensor) != length:
        raise RuntimeError(f"{name} must have {length} entries, not {len(tensor)}")
