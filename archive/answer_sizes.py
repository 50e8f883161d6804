"""Limits how many requests are answered together by the bytes of their answers.

TorchServe's front end reads a worker's answers in pieces of at most 64 KB. With each piece it begins at the first
byte again. So its work grows with the square of the bytes in a batch's answers: 64 answers of 350 KB took 1.5 s, 8
took 21 ms.
"""

from __future__ import annotations

from handlers import tasks
from handlers.protocol.encodings import DIGITS
from handlers.settings import ImageSettings, TextSettings

MAX_BATCH_BYTES = 12 << 20
USUAL_VALUES = 256  # above zero, of a sparse embedding
SPARSE_BYTES = 36  # of one of them in JSON: {"index":30521,"value":1.23456789},
OTHER_BYTES = 6  # of a number in JSON, besides its digits: a sign, "0.", two zeros, a comma


def largest_answer(settings: TextSettings | ImageSettings, hidden: int) -> int:
    """Return the bytes of the largest JSON answer: one request with as many inputs as it may bring.

    Args:
        settings: of the text or image encoder.
        hidden: numbers in one token vector, or in an image's features.

    Returns:
        Bytes for an embedding model. For sparse embeddings those of usual ones, unless the settings limit their
        values. 0 for other tasks, whose answers are far smaller.
    """
    if isinstance(settings, TextSettings) and tasks.head(settings.task).pools_logits:
        return settings.max_inputs * (settings.sparse_pooling.max_active_dims or USUAL_VALUES) * SPARSE_BYTES
    if not _gives_embeddings(settings):
        return 0
    digits = DIGITS["fp16" if settings.precision == "auto" else settings.precision]  # "auto" is fp16 on a GPU
    vectors = len(settings.pooling.modes) if isinstance(settings, TextSettings) else 1
    return settings.max_inputs * hidden * vectors * (digits + OTHER_BYTES)


def _gives_embeddings(settings: TextSettings | ImageSettings) -> bool:
    if isinstance(settings, ImageSettings):
        return settings.task == "embeddings"
    return tasks.head(settings.task).is_embedding


def batch_size(wanted: int, settings: TextSettings | ImageSettings, hidden: int) -> tuple[int, str | None]:
    """Lower a batch size if its answers could be more than MAX_BATCH_BYTES.

    Args:
        wanted: batch size, in requests.
        settings: of the text or image encoder.
        hidden: numbers in one token vector, or in an image's features.

    Returns:
        `wanted` and None, or the largest power of two that fits and a note that says so.
    """
    largest = largest_answer(settings, hidden)
    if wanted * largest <= MAX_BATCH_BYTES:
        return wanted, None
    fits = max(1, MAX_BATCH_BYTES // largest)
    chosen = 1 << (fits.bit_length() - 1)
    return chosen, (
        f"batchSize is {chosen}, not {wanted}: {settings.max_inputs} embeddings, which one request may ask for, are "
        f"{largest / 1e6:.1f} MB of JSON, and TorchServe slows down with the square of a batch's answers. "
        f"--max-inputs {max(1, MAX_BATCH_BYTES * settings.max_inputs // (largest * wanted))} allows {wanted}; "
        "--batch-size sets it all the same"
    )
