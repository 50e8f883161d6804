"""Embeddings, of texts or images -> what a client reads: numbers, base64, or exact values for bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from handlers.protocol import encodings
from handlers.protocol.errors import NotFinite
from handlers.transfers import Download, upload


def begin(embeddings: torch.Tensor, options: Sequence[Mapping[str, Any]], digits: int) -> Callable[[], list[object]]:
    """Start the download of embeddings, and return what waits for it and gives one answer per embedding.

    An answer is an array of numbers, base64, or NotFinite.

    Args:
        embeddings: (N, hidden) fp32.
        options: of each embedding's request, by encodings.OPTIONS; "dimensions" keeps so many numbers.
        digits: significant decimal digits of a number in JSON.
    """
    finite = embeddings.isfinite().all(dim=1)
    as_numbers = [chosen.get("encoding_format", "float") == "float" for chosen in options]
    halved = [chosen.get("dtype") == "float16" for chosen in options]
    # Uploads and selections take launches of their own, so a batch whose requests all ask for the same has none.
    if any(as_numbers):
        rounded = significant(embeddings, digits)
        embeddings = rounded if all(as_numbers) else torch.where(_column(as_numbers, rounded), rounded, embeddings)
    if any(halved):  # float16 ends at 65,504
        finite &= ~_column(halved, finite).squeeze(1) | embeddings.half().isfinite().all(dim=1)
    download = Download(embeddings, finite)

    def answers() -> list[object]:
        vectors, good = download.arrays()
        return [
            _encoded(row[: chosen.get("dimensions")], chosen) if fine else NotFinite()
            for row, fine, chosen in zip(vectors, good.tolist(), options, strict=True)
        ]

    return answers


def _column(values: Sequence[bool], like: torch.Tensor) -> torch.Tensor:
    """Return (N, 1), on the device of `like`."""
    return upload(values, like.device).unsqueeze(1)


def _encoded(row: Any, options: Mapping[str, Any]) -> object:
    return encodings.as_base64(row, options) if options.get("encoding_format") == "base64" else row


def significant(values: torch.Tensor, digits: int) -> torch.Tensor:
    """Return fp32 values rounded to so many significant decimal digits, so that their JSON is that short.

    Values that are not finite, and those below 1e-30, stay as they are. 9 digits and more change nothing.
    """
    if digits >= 9:
        return values
    wide = values.double()
    exponents = wide.abs().clamp_min(1e-30).log10().floor()
    factors = torch.pow(10.0, digits - 1 - exponents)
    rounded = (wide * factors).round() / factors
    narrow = torch.where(wide.abs() >= 1e-30, rounded, wide).float()
    return torch.where(narrow.isfinite(), narrow, values)
