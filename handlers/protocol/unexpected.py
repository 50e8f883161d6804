"""What nobody expected: an error that is neither a client's nor the model's fails its own rows, and tells no data."""

from __future__ import annotations

import logging
import traceback

from handlers.protocol.errors import InferenceFailed

logger = logging.getLogger(__name__)

# What ends a process, or a generator, on purpose. Everything else is caught: a panic in a library of Rust comes as
# pyo3_runtime.PanicException, a BaseException.
ENDS = (SystemExit, KeyboardInterrupt, GeneratorExit)
FRAMES = 40  # the innermost ones of each error; the rest of a recursion says nothing
CHAIN = 5


def failed(error: BaseException, doing: str) -> InferenceFailed:
    """The 500 of the rows that an unexpected error has hit; logs its types and its stack once.

    Messages stay out of the log and of the answer: a tokenizer's may quote the text. Raises `error` again if it ends
    the process.
    """
    refuse_to_stay(error)
    logger.error("%s failed, messages left out: they may hold what a client sent\n%s", doing, _stack(error))
    return answer(error, doing)


def answer(error: BaseException, doing: str) -> InferenceFailed:
    """The 500 alone, for an error that has been logged. Raises `error` again if it ends the process."""
    refuse_to_stay(error)
    return InferenceFailed(f"{doing} failed: {type(error).__name__}; the server's log has where")


def refuse_to_stay(error: BaseException) -> None:
    """Raises `error` again if it ends the process."""
    if isinstance(error, ENDS):
        raise error


def _stack(error: BaseException | None) -> str:
    parts: list[str] = []
    while error is not None and len(parts) < CHAIN:
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-FRAMES))
        parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nraised from:\n".join(parts)
