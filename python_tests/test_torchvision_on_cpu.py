"""The public torchvision wheel beside a CPU-only torch, each case in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_IS_CHEAP = """
import sys
import diva_engine
assert "torch" not in sys.modules
"""

INSTALLED_ONCE = """
import sys
import diva_engine
from diva_engine import torchvision_on_cpu
torchvision_on_cpu.install()
print(sum(type(finder).__name__ == "_TorchvisionFinder" for finder in sys.meta_path))
"""

IMAGE_PROCESSOR = """
import diva_engine
import numpy, PIL.Image
from transformers import Qwen2VLImageProcessor
image = PIL.Image.fromarray(numpy.zeros((84, 84, 3), numpy.uint8))
print(Qwen2VLImageProcessor()(images=[image], return_tensors="pt")["image_grid_thw"].tolist())
"""

NMS_STILL_ANSWERS_FOR_ITSELF = """
import diva_engine
import torch, torchvision
boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
try:
    print(torchvision.ops.nms(boxes, scores, 0.5).tolist())
except RuntimeError as error:
    print(error)
"""

# A package of that name whose import leaves a trace: what is there decides, not the name.
STAND_IN = "import torch\nDECLARED = hasattr(torch.ops.torchvision, 'nms')\n"

STAND_IN_CASE = """
import diva_engine
import torch
torch.version.cuda = {cuda!r}
import torchvision
print(torchvision.DECLARED)
"""

EVERY_PYTHON = """
import site
import sysconfig
sysconfig.get_path = lambda name: {folder!r}
import diva_engine
diva_engine.torchvision_on_cpu.install_for_environment()
for name in [name for name in sys.modules if name.startswith("diva_engine")]:
    del sys.modules[name]
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_TorchvisionFinder"]
site.addsitedir({folder!r})  # as Python does with its site-packages when it starts
print(sum(type(finder).__name__ == "_TorchvisionFinder" for finder in sys.meta_path))
"""

ABSENT = """
import importlib.util, sys
import diva_engine
print(importlib.util.find_spec("torchvision"))
"""


def run(code: str, *flags: str, path: Path | None = None) -> str:
    root = Path(__file__).parents[1]
    places = [str(root)] if path is None else [str(path), str(root)]
    setup = f"import sys\nsys.path[:0] = {places!r}\n"
    done = subprocess.run([sys.executable, *flags, "-c", setup + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_does_not_import_torch() -> None:
    run(IMPORT_IS_CHEAP)


def test_the_finder_is_installed_once() -> None:
    assert run(INSTALLED_ONCE) == "1"


def test_every_python_of_an_environment_can_have_the_finder(tmp_path: Path) -> None:
    assert run(EVERY_PYTHON.format(folder=str(tmp_path))) == "1"


def test_an_image_processor_works_whatever_torchvision_is_installed() -> None:
    assert run(IMAGE_PROCESSOR) == "[[1, 6, 6]]"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_nms_works_or_raises_torchvisions_own_error() -> None:
    said = run(NMS_STILL_ANSWERS_FOR_ITSELF)
    assert said == "[0]" or "custom C++ ops" in said


@pytest.mark.parametrize(
    ("torch_cuda", "declared"), [(None, "True"), ("13.0", "False")], ids=["CPU torch", "CUDA torch"]
)
def test_operators_are_declared_for_a_cpu_torch_only(tmp_path: Path, torch_cuda: str | None, declared: str) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    assert run(STAND_IN_CASE.format(cuda=torch_cuda), path=tmp_path) == declared


def test_an_absent_torchvision_stays_absent() -> None:
    assert run(ABSENT, "-S") == "None"  # -S: without site-packages, so without torchvision
