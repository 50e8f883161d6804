"""How many requests may be answered together, by the bytes of their answers.

TorchServe's front end reads a worker's answers in pieces of at most 64 KB. With each piece it begins at the first
byte again. So its work grows with the square of a batch's answers: 64 answers of 350 KB took 1.5 s, 8 took 21 ms.
"""

from __future__ import annotations

from handlers.protocol.encodings import DIGITS
from handlers.settings import ImageSettings, TextSettings

MAX_BATCH_BYTES = 12 << 20
BESIDE_DIGITS = 6  # bytes of a number in JSON beside its digits: a sign, "0.", two zeros, a comma


def largest_answer(settings: TextSettings | ImageSettings, hidden: int) -> int:
    """Bytes of the largest JSON answer of an embedding model: one request with as many inputs as it may bring.

    hidden: numbers of an embedding. Other tasks answer with far fewer bytes; 0 is returned for them.
    """
    if settings.task != "embeddings":
        return 0
    digits = DIGITS["fp16" if settings.precision == "auto" else settings.precision]  # "auto" is fp16 on a GPU
    vectors = len(settings.pooling.modes) if isinstance(settings, TextSettings) else 1
    numbers = settings.max_inputs * hidden * vectors
    return numbers * (digits + BESIDE_DIGITS)


def batch_size(wanted: int, settings: TextSettings | ImageSettings, hidden: int) -> tuple[int, str | None]:
    """Return `wanted`, or the largest power of two whose answers stay within MAX_BATCH_BYTES; and a note if less."""
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
