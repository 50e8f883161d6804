"""The tasks of a text encoder, from a network's outputs to what a client reads: one file each, found by its name.

The file of "token-classification" is token_classification.py. It offers

- `HEAD`: what the task reads from a network, and which checkpoints are made for it (tasks/shared/head.py);
- `OPTIONS`: names of the options that a request may bring;
- `make(archive)`: the TextTask that answers (tasks/shared/task.py).
"""

from __future__ import annotations

import json
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handlers.settings import TextSettings
    from handlers.tasks.shared.head import Head
    from handlers.tasks.shared.task import TextTask
    from handlers.texts.tokenization import Tokenizer

# Options that image models (handlers.image_tasks) or all text encoders have.
OPTIONS_BESIDE_TASKS = ("normalize", "prompt_name", "top_k", "truncate", "truncation_direction")


def names() -> tuple[str, ...]:
    """Return the names of all tasks, in alphabetical order."""
    return tuple(sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__) if not found.ispkg))


def head(task: str) -> Head:
    """Return what a task reads from a network. Raises ModuleNotFoundError for an unknown task."""
    found: Head = _module(task).HEAD
    return found


def option_names() -> tuple[str, ...]:
    """Return the names of the options that any model of this package has, of texts or of images."""
    return tuple(sorted({*OPTIONS_BESIDE_TASKS, *(name for task in names() for name in _module(task).OPTIONS)}))


def load(folder: Path, settings: TextSettings, tokenizer: Tokenizer, precision: str = "fp32") -> TextTask:
    """Return the task that an archive was packaged for.

    Args:
        folder: the unpacked archive.
        precision: of the engine that serves; numbers in JSON get as many digits as it holds.
    """
    from handlers.tasks.shared.task import Archive

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task: TextTask = _module(settings.task).make(Archive(folder, config, settings, tokenizer, precision))
    return task


def _module(task: str) -> ModuleType:
    return import_module(f"{__name__}.{task.replace('-', '_')}")
