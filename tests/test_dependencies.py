"""What is imported is declared, and a missing extra is named as pyproject.toml has it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from retriever.errors import MissingDependency

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"cli", "indexes", "retriever"}
# Parts of sentence-transformers' own interface: what it loads are models of the one and modules of the other.
BROUGHT = {"torch", "transformers"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each distribution."""
    pairs = [requirement.partition(">=") for requirement in requirements]
    return {normal(name): bound for name, _, bound in pairs}


EXTRAS = {name: declared(every) for name, every in PROJECT["optional-dependencies"].items()}
USED = {name: packages for name, packages in EXTRAS.items() if name != "test"}


def modules() -> Iterator[tuple[Path, ast.AST]]:
    for path in [ROOT / "cli.py", *(ROOT / "indexes").rglob("*.py"), *(ROOT / "retriever").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def imported() -> dict[str, set[str]]:
    """The files that import each package."""
    found: dict[str, set[str]] = {}
    for path, node in modules():
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        else:
            continue
        for name in names:
            found.setdefault(name.partition(".")[0], set()).add(path.name)
    return {name: files for name, files in found.items() if name not in OWN | sys.stdlib_module_names}


def test_every_package_that_is_imported_is_declared():
    every = declared(PROJECT["dependencies"]).keys() | {name for extra in USED.values() for name in extra}
    distributions = packages_distributions()
    packages = imported()
    assert {"numpy", "rich", "markupsafe", "threadpoolctl", "huggingface_hub"} <= packages.keys()
    assert {
        name: files
        for name, files in packages.items()
        if name not in BROUGHT and not {normal(one) for one in distributions.get(name, [])} & every
    } == {}


def test_the_tested_set_satisfies_every_lower_bound():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {normal(name): version for name, _, version in (line.partition("==") for line in lines)}

    def numbers(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    bounds = [*declared(PROJECT["dependencies"]).items(), *(pair for extra in USED.values() for pair in extra.items())]
    assert len(bounds) > 20
    assert [(name, bound) for name, bound in bounds if numbers(pins.get(name, "0")) < numbers(bound)] == []


def test_an_extra_that_is_named_brings_the_package_that_is_missing():
    named = [
        (node.args[0].value, node.args[1].value)
        for _, node in modules()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == MissingDependency.__name__
        and all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    assert ("tiktoken", "tiktoken") in named
    assert [(package, extra) for package, extra in named if normal(package) not in EXTRAS[extra]] == []
