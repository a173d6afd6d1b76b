"""The layers of raysid's folders: each folder imports only the layers below it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up. Folders of one layer may import each other, but not in a circle.
LAYERS = (
    ("errors", "formats", "storage", "ray_internals"),
    ("config",),
    ("method",),
    ("data", "networks", "metrics"),
    ("generator",),
    ("roles",),
    ("run", "recipes", "cluster"),
    ("actors",),
    ("trainers",),
    ("plan", "bench"),
    ("distillation",),
    ("cli", "__main__"),
)
HEIGHT = {folder: height for height, layer in enumerate(LAYERS) for folder in layer}

MAX_LINES = 400
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}

# Folders whose modules are imported in a fresh process, in this order, and the packages that this must not import.
# A name stands for a package and all its modules.
NEVER_IMPORTED = {
    "raysid.errors": ("torch", "ray"),
    "raysid.recipes.files": ("aiohttp", "pydantic", "torch", "ray"),  # `raysid recipes` answers at once
    "raysid.config": ("torch", "ray"),
    "raysid.method": ("ray", "raysid.roles", "raysid.networks"),
    "raysid.networks": ("ray", "raysid.roles"),
    "raysid.generator": ("ray", "raysid.roles"),
    "raysid.roles": ("ray", "raysid.run", "raysid.actors"),
}


@dataclass(frozen=True)
class Import:
    """One module of raysid imports another; `line` is where."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def folder_of(module: str) -> str:
    """The folder or module of raysid's top level that a module belongs to; "" for `raysid` itself."""
    return module.partition(".")[2].partition(".")[0]


@cache
def sources() -> dict[str, Path]:
    """The file of every module of raysid, by the module's name."""
    found = {}
    for file in sorted((ROOT / "raysid").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_in(code: str, importer: str, modules: set[str], is_package: bool) -> Iterator[Import]:
    """Every import of raysid's own modules: at the top, in functions, under TYPE_CHECKING, or by name."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parts = importer.split(".")
                    parts = parts[: len(parts) - node.level + is_package]
                    base = ".".join(parts + ([node.module] if node.module else []))
                names = [f"{base}.{alias.name}" for alias in node.names]
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module")):
                names = [one.value for one in node.args[:1] if isinstance(one, ast.Constant)]
            case _:
                continue
        for name in names:
            while name.partition(".")[0] == "raysid" and name not in modules:
                name = name.rpartition(".")[0]  # a function or class of that module
            if name in modules and name != importer:
                yield Import(importer, name, node.lineno)


@cache
def imports() -> tuple[Import, ...]:
    """The imports of all modules except `raysid` itself, which imports its exports at first use."""
    modules = set(sources())
    return tuple(
        one
        for module, file in sources().items()
        if module != "raysid"
        for one in imports_in(file.read_text(), module, modules, file.name == "__init__.py")
    )


def test_every_folder_has_a_layer() -> None:
    folders = {folder_of(module) for module in sources()} - {""}
    assert folders == HEIGHT.keys(), "add a new folder to LAYERS and to docs/design.md"


def test_imports_point_down() -> None:
    upward = [
        str(one)
        for one in imports()
        if (folder := folder_of(one.imported)) and HEIGHT[folder_of(one.importer)] < HEIGHT[folder]
    ]
    assert not upward, "imports that point upward:\n" + "\n".join(upward)


def test_no_circle_of_modules() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for one in imports():
        graph[one.importer].add(one.imported)
    assert_no_circle(graph)


def test_no_circle_of_folders() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for one in imports():
        importer, imported = folder_of(one.importer), folder_of(one.imported)
        if imported and importer != imported:
            graph[importer].add(imported)
    assert_no_circle(graph)


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """The contents of sys.modules after each folder of NEVER_IMPORTED and those before it are imported."""
    stages = {
        folder: [module for module in sources() if (module + ".").startswith(folder + ".")]
        for folder in NEVER_IMPORTED
    }
    code = """
import importlib, json, sys
loaded = {}
for folder, modules in json.loads(sys.argv[1]).items():
    for module in modules:
        importlib.import_module(module)
    loaded[folder] = list(sys.modules)
print(json.dumps(loaded))
"""
    return json.loads(fresh_process(code, json.dumps(stages)))


def fresh_process(code: str, *arguments: str) -> str:
    """The output of a new Python that runs `code`."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("folder", "package"),
    [(folder, package) for folder, never in NEVER_IMPORTED.items() for package in never],
)
def test_importing_a_folder_does_not_import(folder: str, package: str, loaded: dict[str, list[str]]) -> None:
    found = [module for module in loaded[folder] if (module + ".").startswith(package + ".")]
    assert not found, f"{folder} imports {found[0]}"


def test_no_file_is_too_long() -> None:
    lines = {str(file.relative_to(ROOT)): file.read_text().count("\n") for file in sources().values()}
    assert not {name: count for name, count in lines.items() if count >= MAX_LINES}


def test_every_module_is_named_after_its_subject() -> None:
    assert not [module for module in sources() if DRAWERS & set(module.split("."))]


IMPORTS_UPWARD = """
from __future__ import annotations
from typing import TYPE_CHECKING
from raysid.run.checkpoint import Checkpoints
import raysid.actors.pool
if TYPE_CHECKING:
    from raysid.trainers import distill
def late() -> None:
    from . import step
    from ..cli import main
    importlib.import_module("raysid.plan")
"""


def test_an_import_is_found_wherever_it_stands() -> None:
    found = imports_in(IMPORTS_UPWARD, "raysid.roles.build", set(sources()), is_package=False)
    assert [one.imported for one in found] == [
        "raysid.run.checkpoint",
        "raysid.actors.pool",
        "raysid.trainers.distill",
        "raysid.roles.step",
        "raysid.cli.main",
        "raysid.plan",
    ]
