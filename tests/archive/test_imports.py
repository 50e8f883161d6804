"""Imports within archive/ go one way, lazy ones and those for type checkers included."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A module may import those of its own row and of the rows below it.
ROWS = (
    ("archive.__main__",),
    ("archive.command_line", "archive.resolve", "archive.signing"),
    ("archive.signing_command_line",),
    ("archive.package", "archive.sbom", "archive.carried_samples", "archive.random_weights", "archive.decoder_gate"),
    ("archive.models", "archive.presets", "archive.fingerprint", "archive.early_checks", "archive.answer_sizes"),
    ("archive.tensorrt_files", "archive.onnx_export", "archive.reference_embeddings", "archive.reference_pixels"),
    ("archive.options", "archive.inspection", "archive.parity", "archive.progress", "archive.sample_images"),
    ("archive.trial_run", "archive.checkpoints", "archive.workers"),
    ("archive.digests", "archive.near_options"),
)


def modules() -> dict[str, Path]:
    """Every module of archive/, by its dotted name."""
    found = {}
    for path in (ROOT / "archive").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> dict[str, set[str]]:
    """Which modules of archive/ each of them imports."""
    known = modules()
    graph = {}
    for module, path in known.items():
        names = {name if name in known else name.rpartition(".")[0] for name in imported(path)}
        graph[module] = names & known.keys()
    return graph


def row(module: str) -> int:
    folders = ("archive.checkpoints", "archive.signing")
    name = next((folder for folder in folders if module.startswith(f"{folder}.")), module)
    return next(index for index, names in enumerate(ROWS) if name in names)


def test_there_is_no_circle() -> None:
    try:
        list(graphlib.TopologicalSorter(edges()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_modules_import_what_is_below_them() -> None:
    graph = edges()
    upward = [f"{a} imports {b}" for a, names in graph.items() if a != "archive" for b in names if row(b) < row(a)]
    assert upward == []


def test_every_module_has_its_row() -> None:
    """And no row names a module that is gone."""
    named = {name for names in ROWS for name in names}
    assert named == {module for module in modules() if module.count(".") == 1}


def test_nothing_that_a_worker_runs_imports_archive() -> None:
    importing = [
        f"{path.name}: {name}"
        for path in (ROOT / "handlers").rglob("*.py")
        for name in imported(path)
        if name.partition(".")[0] == "archive"
    ]
    assert importing == []


def test_whether_an_archive_is_up_to_date_is_answered_without_torch() -> None:
    """Of archive/, `__main__` imports only light modules before it packages."""
    heavy = ("archive.models", "archive.resolve", "archive.carried_samples")
    tree = ast.parse((ROOT / "archive" / "__main__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not {f"{node.module}.{alias.name}" for node in top for alias in node.names} & set(heavy)
