"""The house: imports go down only, and heavy libraries stay in their rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diva_engine"
ROOMS = ("data", "rewards", "rollout", "policy", "augmentation", "integrations")
FLOOR = {"ops": 0, "algorithm": 1, **dict.fromkeys(ROOMS, 2), "trainer": 3}
BESIDE = {"records", "config", "distributed", "seeds", "settings"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("diva_engine.")} - {room}
    if room in BESIDE:
        assert not others & (FLOOR.keys()), f"{room} stands beside the house and imports a room"
    if room in FLOOR:
        upward = {other for other in others & FLOOR.keys() if FLOOR[other] >= FLOOR[room]}
        assert not upward, f"{room} imports {upward}, which do not lie below it"


def test_vllm_is_imported_in_one_file_at_most():
    users = [path for path in MODULES if any(name.split(".")[0] == "vllm" for name in imported(path))]
    assert users in ([], [PACKAGE / "rollout" / "vllm_engine.py"])


def test_the_algorithms_load_without_transformers():
    code = "import sys; sys.modules['transformers'] = None; import diva_engine, diva_engine.algorithm.recipes"
    subprocess.run([sys.executable, "-c", code], check=True)
