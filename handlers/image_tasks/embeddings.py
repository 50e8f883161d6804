"""The task "embeddings": an image's pooled features, as text embeddings are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from handlers.image_tasks.base import ImageArchive, ImageTask
from handlers.protocol import encodings
from handlers.protocol.options import yes_or_no
from handlers.tasks.shared import embeddings
from handlers.transfers import upload


class Embeddings(ImageTask):
    """Pooled features (N, K) -> one vector per image: numbers, base64 or bytes, see protocol/encodings.py.

    Args:
        normalize: whether vectors are scaled to length 1, unless the request says otherwise.
        digits: significant decimal digits of a number in JSON.
    """

    media_types = encodings.MEDIA_TYPES

    def __init__(self, normalize: bool, digits: int) -> None:
        self.normalize, self.digits = normalize, digits
        self.options = {"normalize": yes_or_no, **encodings.OPTIONS}

    def answer(self, outputs: torch.Tensor, options: Sequence[Mapping[str, Any]]) -> list[object]:
        """See ImageTask."""
        features = outputs.float()  # (N, K)
        wanted = [chosen.get("normalize", self.normalize) for chosen in options]
        if any(wanted):
            chosen_rows = upload(wanted, features.device).unsqueeze(1)  # (N, 1)
            features = torch.where(chosen_rows, F.normalize(features, dim=1), features)
        return embeddings.begin(features, options, self.digits)()


def make(archive: ImageArchive) -> ImageTask:
    """Return the task of an archive."""
    return Embeddings(archive.settings.normalize, encodings.DIGITS[archive.precision])
