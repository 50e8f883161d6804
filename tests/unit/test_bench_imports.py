"""The scripts' modules import each other one way: no circle, not even one that an import inside a function hides."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
ROOMS = (SCRIPTS / "commands", SCRIPTS / "research")


def modules() -> dict[str, Path]:
    """Every module of the scripts, by the name it is imported by."""
    found = {}
    for room in ROOMS:
        for file in room.rglob("*.py"):
            parts = file.relative_to(room).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path) -> set[str]:
    """What a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    assert len(known) > 40
    graph = {name: (imported(file) & known.keys()) - {name} for name, file in known.items()}
    for name in known:  # a package's __init__ names what is in it, and imports none of it
        graph[name] -= {name.rpartition(".")[0]}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_file_hides_a_package_that_the_scripts_need() -> None:
    top = {name.partition(".")[0] for name in modules()}
    assert not top & {"torchserve", "ts", "httpx", "token", "http", "logging", "tokenize", "config", "requests"}
