"""From a network's outputs to what a client reads: one file a task, found by its name.

The file of "token-classification" is token_classification.py. It offers `make(archive) -> TextTask`.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from handlers.settings import TextSettings
from handlers.tasks.base import Archive, TextTask
from handlers.texts.tokenization import Tokenizer


def load(folder: Path, settings: TextSettings, tokenizer: Tokenizer, precision: str = "fp32") -> TextTask:
    """Return the task that an archive was packaged for.

    Args:
        folder: the unpacked archive.
        precision: of the engine that serves; numbers in JSON get as many digits as it holds.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    module = import_module(f"{__name__}.{settings.task.replace('-', '_')}")
    task: TextTask = module.make(Archive(folder, config, settings, tokenizer, precision))
    return task
