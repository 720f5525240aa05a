"""Whatever the package imports, pyproject.toml installs."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported_packages() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "diva_engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names - {"diva_engine", "__future__"}


def declared_distributions() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    names = [re.match(r"[\w.-]+", line)[0] for line in [*project["dependencies"], *extras]]
    return {name.lower().replace("_", "-") for name in names}


def test_every_import_is_declared():
    distributions, declared = packages_distributions(), declared_distributions()
    undeclared = {
        package
        for package in imported_packages()
        if package in distributions  # an optional one that is not installed here is named by its own error
        and not {name.lower().replace("_", "-") for name in distributions[package]} & declared
    }
    assert not undeclared
