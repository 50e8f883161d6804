"""What the tasks of image networks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handlers.protocol import encodings
from handlers.settings import ImageSettings


@dataclass(frozen=True)
class ImageArchive:
    """What a task is made from.

    folder: of the unpacked archive.
    settings: the archive's.
    precision: of the engine that serves.
    """

    folder: Path
    settings: ImageSettings
    precision: str


class ImageTask:
    """A task of image networks.

    options: that may come with a request, each with its reader.
    forms: media types that answers can come as, the default first.
    """

    options: Mapping[str, Callable[[object], object]] = {}
    forms: Sequence[str] = (encodings.JSON,)

    def answer(self, outputs: torch.Tensor, options: Sequence[Mapping[str, Any]]) -> list[object]:
        """One answer per image, or the error of that image.

        Args:
            outputs: (N, K) of the network, on its device, in its dtype.
            options: of each image's request.
        """
        raise NotImplementedError
