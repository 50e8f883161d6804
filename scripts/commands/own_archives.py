"""The archives that scripts/serve serves in place of the demo's, and whether they answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from argument_types import checked
from ready import ask, check_workers, described
from server.client import Client
from serving_bench.archives import IMAGES, TEXTS, Archive, read

from archive.command_line import is_name

ASK_TIMEOUT_S = 30.0  # of one request, while the models load
LEAST_TIMEOUT_S = 300.0
SPARE_S = 60.0  # after which TorchServe itself has written that it gave up
KNOWN_KINDS = (IMAGES, TEXTS)


@checked
def own_archive(text: str) -> Archive:
    """ "FILE.mar" or "NAME=FILE.mar"; a file name alone may be in model_store/. Raises ValueError."""
    found = read(text)
    if not is_name(found.name):
        raise ValueError(f"{found.name!r} cannot name a model; wanted: letters, digits, '_', '-' and '.'")
    return found


def misplaced(archives: Sequence[Archive]) -> str:
    """What keeps these archives from being served together, for a person; "" if nothing does."""
    if twice := [name for name, count in Counter(archive.name for archive in archives).items() if count > 1]:
        return f"two archives have the name {twice[0]!r}; wanted: a name for each, as NAME=FILE.mar"
    if folders := sorted({str(archive.file.parent) for archive in archives[1:]} - {str(archives[0].file.parent)}):
        return f"archives lie in {archives[0].file.parent} and in {folders[0]}; wanted: all in one folder"
    return ""


def asks(archives: Sequence[Archive]) -> dict[str, Callable[[Client], bool]]:
    """By model, what returns True once it answers; see Server.wait."""
    return {archive.name: partial(answers, name=archive.name) for archive in archives}


def answers(client: Client, name: str) -> bool:
    """Whether a model answers. If it is not of this project, whether it has a worker that is ready.

    Raises ServerError or OSError if not.
    """
    check_workers(client, name)
    if described(client, name).get("kind") in KNOWN_KINDS:
        ask(client, name, time.monotonic() + ASK_TIMEOUT_S)
    return True


def timeout_s(archives: Sequence[Archive]) -> float:
    """Return how long to wait until all answer: as long as TorchServe lets the slowest one load."""
    most = max(float(archive.config.get("startupTimeout", 0)) for archive in archives)
    return max(LEAST_TIMEOUT_S, most + SPARE_S)


def summary(name: str, about: Mapping[str, Any]) -> str:
    """A line that says what serves a model, from its description."""
    if about.get("kind") not in KNOWN_KINDS:
        return f"{name}: its handler is not of this project, and does not say what serves"
    engine, precision, device = (about[key]["name"] for key in ("engine", "precision", "device"))
    return f"{name}: engine {engine}, precision {precision} ({about['precision']['why']}), {device}"
