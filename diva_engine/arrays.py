"""The ops on groups of rewards for arrays of any library, in place and without torch.

NumPy arrays, CPU arrays that speak DLPack, and CUDA arrays that speak `__cuda_array_interface__` or DLPack (CuPy,
Numba, JAX, torch) are read where they lie: one-dimensional, contiguous, float32 (float64 on the CPU too), int64 for
offsets and indices. `diva_engine.ops`, the same for torch tensors, says what the ops compute and what their settings
mean.

CPU results come as new NumPy arrays, or in `out`. For CUDA arrays give `out` and, where it is not the default one, the
`stream` as an integer (CuPy: `cupy.cuda.get_current_stream().ptr`); nothing waits for the device.
"""

from diva_engine._C import diva_advantage, group_stats, shared_std_advantage, update_difficulty

__all__ = ["diva_advantage", "group_stats", "shared_std_advantage", "update_difficulty"]
