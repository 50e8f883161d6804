"""What the tasks of image networks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from handlers.protocol import encodings
from handlers.protocol.options import OptionReader

if TYPE_CHECKING:
    from handlers.settings import ImageSettings


@dataclass(frozen=True)
class ImageArchive:
    """What a task is made from.

    Args:
        folder: the unpacked archive.
        settings: the archive's.
        precision: of the engine that serves.
    """

    folder: Path
    settings: ImageSettings
    precision: str


class ImageTask:
    """A task of image networks.

    Args:
        options: that a request may bring, each with its reader. Their names are among tasks.option_names().
        media_types: that an answer can come as, the default first. Others than JSON take answers that are arrays.
    """

    options: Mapping[str, OptionReader] = {}
    media_types: Sequence[str] = (encodings.JSON,)

    def answer(self, outputs: torch.Tensor, options: Sequence[Mapping[str, Any]]) -> list[object]:
        """Return one answer, or NotFinite, per image, in order.

        Args:
            outputs: (N, K) of the network, on its device, in its dtype.
            options: of each image's request.
        """
        raise NotImplementedError
