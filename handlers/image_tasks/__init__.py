"""From an image network's outputs to what a client reads: one file per task, found by its name.

The file of "embeddings" is embeddings.py. It offers `make(archive) -> ImageTask`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from handlers.image_tasks.base import ImageArchive, ImageTask

if TYPE_CHECKING:
    from handlers.settings import ImageSettings


def load(folder: Path, settings: ImageSettings, precision: str) -> ImageTask:
    """Return the task that an archive was packaged for.

    Args:
        folder: of the unpacked archive.
        settings: the archive's.
        precision: of the engine that serves; numbers in JSON get as many digits as it holds.
    """
    module = import_module(f"{__name__}.{settings.task.replace('-', '_')}")
    task: ImageTask = module.make(ImageArchive(folder, settings, precision))
    return task
