"""Registers, shared memory and spills of every kernel, for every architecture: `python -m bench.registers` prints them.

Asks nvcc's assembler; no GPU is needed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHITECTURES = (80, 90, 100, 120)

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture."""

    kernel: str
    architecture: int
    registers: int
    shared_bytes: int
    spill_bytes: int


def kernel_files() -> list[Path]:
    return sorted(CSRC.glob("*/*_cuda.cu"))


def resources(source: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[Resources]:
    """Compiles one kernel file and reads what the assembler says. Raises RuntimeError with the compiler's words."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise FileNotFoundError("nvcc is not on PATH")
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    flags = ["-std=c++17", "-O3", "-Xcompiler=-ffp-contract=off", f"-I{CSRC}", "-Xptxas=-v", "-c"]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *flags, *targets, str(source), "-o", f"{folder}/kernel.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [_resources(match) for match in _ENTRY.finditer(done.stderr)]


def _resources(match: re.Match[str]) -> Resources:
    shared = re.search(r"(\d+) bytes smem", match["rest"])
    return Resources(
        kernel=_plain_name(match["name"]),
        architecture=int(match["arch"]),
        registers=int(match["registers"]),
        shared_bytes=int(shared[1]) if shared else 0,
        spill_bytes=int(match["stores"]) + int(match["loads"]),
    )


def _plain_name(mangled: str) -> str:
    """The function's own name, with its template arguments where there are any."""
    filt = shutil.which("c++filt")
    if filt is None:
        return mangled
    demangled = subprocess.run([filt, mangled], capture_output=True, text=True, check=True).stdout.strip()
    without_parameters = re.sub(r"\(.*$", "", demangled.removeprefix("void "))
    return re.sub(r"\b(?:diva|\(anonymous namespace\))::", "", without_parameters)


def table(rows: Sequence[Resources]) -> str:
    """Markdown: a row a kernel, registers for each architecture, the most shared memory and spills."""
    lines = [
        "| kernel | " + " | ".join(f"sm_{arch}" for arch in ARCHITECTURES) + " | static shared bytes | spilled bytes |",
        "| --- |" + " --- |" * (len(ARCHITECTURES) + 2),
    ]
    for kernel in dict.fromkeys(row.kernel for row in rows):
        of_kernel = [row for row in rows if row.kernel == kernel]
        registers = {row.architecture: row.registers for row in of_kernel}
        cells = [str(registers[arch]) for arch in ARCHITECTURES]
        cells += [str(max(row.shared_bytes for row in of_kernel)), str(max(row.spill_bytes for row in of_kernel))]
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table([row for source in kernel_files() for row in resources(source)]) + "\n")
