"""What packaging can refuse before it imports PyTorch and transformers, which takes seconds.

Each check says nothing if it cannot tell: archive/resolve.py checks the same again, with the checkpoint read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archive.checkpoints.class_labels import names_in
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.json_files import read_json
from archive.options import ImageClassifierOptions, PackagingOptions, TextOptions

NO_POOLING = (
    "the checkpoint does not say how token vectors become an embedding (it has no modules.json); "
    "wanted: --pooling mean or --pooling cls, as its model card says, and --normalize if it says so"
)
EMBEDDINGS = ("embeddings", "Model")  # the task, and how architectures end that are made for it
IMAGENET = 1000  # classes that need no labels
CLASSIFIERS = ("fc.weight", "classifier.1.weight")  # (classes, hidden), as torchvision, timm and transformers have it
LARGEST_HEADER = 1 << 26  # bytes of a file's description that are read


def run(options: PackagingOptions, source: Path | None) -> None:
    """Raise CheckpointError for what is surely wrong.

    Args:
        source: the checkpoint's file or folder; None for random weights.
    """
    if isinstance(options, ImageClassifierOptions):
        labels = None if options.labels is None else read_labels(options.labels)
        count = None if source is None else _classes(source)
        if count is not None and (labels is not None or count != IMAGENET):
            refuse_labels(labels, count)
    elif isinstance(options, TextOptions) and source is not None and _lacks_pooling(options, source):
        raise CheckpointError(NO_POOLING)


def refuse_labels(labels: list[str] | None, count: int) -> None:
    """Raise CheckpointError unless there is a name for each class. labels: None if there are none."""
    if labels is None:
        raise CheckpointError(
            f"the checkpoint does not name its {count} classes; wanted: --labels FILE, one name per line"
        )
    if len(labels) != count:
        raise CheckpointError(f"{len(labels)} labels for {count} classes")


def read_labels(path: Path) -> list[str]:
    """Return the class names of a file: one per line, or JSON. Raises CheckpointError with the file's name."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        if path.suffix == ".json":
            return names_in(json.loads(text), str(path))
    except CheckpointError:
        raise
    except ValueError as error:  # not UTF-8, not JSON
        raise CheckpointError(
            f"{path} cannot be read ({error}); wanted: one name per line, or JSON, in UTF-8"
        ) from None
    lines = text.rstrip().splitlines()
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if blank:
        raise CheckpointError(f"{path}: line {blank[0]} is blank; wanted: a name on each, class by class")
    return lines


def _lacks_pooling(options: TextOptions, source: Path) -> bool:
    """Return whether a folder of transformers alone is to be served for embeddings."""
    if options.pooling or not (source / "config.json").is_file() or (source / "modules.json").exists():
        return False
    task, ending = EMBEDDINGS
    try:
        named = read_json(source / "config.json").get("architectures")
    except CheckpointError:  # the checkpoint's reader tells
        return False
    own = isinstance(named, list) and bool(named) and str(named[0]).endswith(ending)
    return own if options.task is None else options.task == task


def _classes(source: Path) -> int | None:
    """Return how many classes a bare state dict has; None if that cannot be told, or if other files name them.

    A pickle is left to the checkpoint's reader, which has PyTorch read it with weights_only.
    """
    if source.suffix != ".safetensors" or not source.is_file() or (source.parent / "config.json").exists():
        return None
    try:
        shapes = _safetensors_shapes(source)
        found = {shape[0] for name, shape in shapes if name.endswith(CLASSIFIERS) and len(shape) == 2}
    except Exception:  # whatever the file is, the checkpoint's reader tells
        return None
    return found.pop() if len(found) == 1 else None


def _safetensors_shapes(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(min(size, LARGEST_HEADER)))
    return [(name, tuple(value["shape"])) for name, value in header.items() if "shape" in value]
