"""Every kernel file compiles for every architecture that the wheel holds, and none spills registers."""

from __future__ import annotations

import shutil

import pytest

from bench import registers

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH: kernels cannot be compiled here"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("source", registers.kernel_files(), ids=lambda source: source.parent.name)
def test_compiles_for_every_architecture_without_spills(source):
    rows = registers.resources(source)
    has_kernels = "__global__" in source.read_text()
    assert {row.architecture for row in rows} == (set(registers.ARCHITECTURES) if has_kernels else set())
    assert [row for row in rows if row.spill_bytes] == []
