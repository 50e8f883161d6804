"""Imports in handlers/ go one way: between its rooms by ALLOWED, and never in a circle between files.

Imports inside functions count as well. Those under `if TYPE_CHECKING:` do not: they name types, and never run. A new
arrow between rooms is written down in ALLOWED, if it closes no circle.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from handlers import engines

ROOT = Path(__file__).parents[2]

# By room: the rooms that it may import. A room is a folder, or a file that lies in no folder; `entries` are the files
# that TorchServe loads. handlers/__init__.py may be imported by all.
ALLOWED: Mapping[str, set[str]] = {
    "entries": {
        "cpus", "digests", "encoder", "engines", "image_tasks", "images", "isolation", "loading",
        "phases", "protocol", "serving", "settings", "tasks", "texts", "load_errors",
    },
    # Runs an archive without TorchServe: as TorchServe does, it loads the entries, and nothing else imports it.
    "hosts": {"digests", "entries", "load_errors", "loading", "protocol", "serving"},
    "loading": {
        "caches", "engines", "faults", "gpu_memory", "phases", "placement", "protocol", "selection", "settings",
        "unpacked_files",
    },
    "selection": {"digests", "encoder", "engines", "phases", "placement", "tasks", "texts"},
    "image_tasks": {"protocol", "tasks", "transfers"},
    "settings": {"images", "near_names", "tasks"},
    "images": {"engines", "isolation", "kernels", "protocol", "transfers"},
    "unpacked_files": {"digests"},
    "engines": {"caches", "digests", "encoder", "kernels", "phases", "tasks", "transfers"},
    "tasks": {"encoder", "protocol", "texts", "transfers"},
    "texts": {"protocol"},
    "serving": {"isolation", "loading", "phases", "protocol", "settings"},
    "encoder": {"kernels", "misfits"},
    "isolation": {"protocol"},
    "placement": {"cpus", "mps"},
    "protocol": {"near_names"},
    "kernels": set(),
    "caches": set(),
    "digests": set(),
    "faults": set(),
    "gpu_memory": set(),
    "phases": set(),
    "cpus": set(),
    "load_errors": set(),
    "misfits": set(),
    "mps": set(),
    "near_names": set(),
    "transfers": set(),
}  # fmt: skip
ROOMS = {
    "image_classifier": "entries",
    "text_encoder": "entries",
    "serving.isolation": "isolation",  # knows nothing of serving, and images call it as well
    "serving.memory_limit": "isolation",  # what it remembers from batch to batch
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "handlers").rglob("*.py"))
}


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, without what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _statements(child)


def imported(path: Path) -> Iterator[str]:
    """Modules of handlers/ that a file imports, anywhere in it but under `if TYPE_CHECKING:`."""
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            assert node.level == 0, f"{path} imports relatively, which an entry of TorchServe cannot"
            found = {f"{node.module}.{name.name}" for name in node.names}
            yield from found & MODULES.keys()
            if found - MODULES.keys():
                yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called == "import_module" and node.args[0].value in MODULES:
                yield str(node.args[0].value)


IMPORTS = {module: set(imported(path)) - {"handlers"} for module, path in MODULES.items()}


def room(module: str) -> str:
    """The room that a module lies in."""
    name = module.removeprefix("handlers.")
    return ROOMS.get(name, name.split(".")[0])


def test_rooms_import_what_they_may() -> None:
    found = defaultdict(set)
    for module, others in IMPORTS.items():
        for other in others:
            if module != "handlers" and room(other) != room(module):
                found[room(module)].add(room(other))
    odd = {name: sorted(others - ALLOWED.get(name, set())) for name, others in found.items()}
    assert {name: others for name, others in odd.items() if others} == {}


def test_no_circle_is_allowed() -> None:
    TopologicalSorter(ALLOWED).prepare()  # raises CycleError


def test_files_import_one_another_in_no_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_engine_imports_another() -> None:
    files = {f"handlers.engines.{name}" for name in engines.names()}
    assert {module: IMPORTS[module] & files for module in files if IMPORTS[module] & files} == {}


def test_imports_in_functions_and_by_name_count() -> None:
    assert "handlers.kernels.resnet" in IMPORTS["handlers.engines.cudnn"]  # import_module
    assert "handlers.engines.networks" in IMPORTS["handlers.engines.torch_eager"]  # in a function


def test_image_workers_import_transformers_networks_in_two_files_only() -> None:
    """The import takes seconds. An engine that folds ResNets, or has a plan, can do without."""
    asking = {module for module, others in IMPORTS.items() if "handlers.engines.networks" in others}
    assert asking == {"handlers.engines.torch_eager", "handlers.engines.resnet_folders"}
