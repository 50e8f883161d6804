"""Errors of our own or of a library: each becomes a 500 for the requests that it hits, and shows no client's data."""

from __future__ import annotations

import logging
import traceback

from handlers.protocol.errors import InferenceFailed

logger = logging.getLogger(__name__)

# These end a process, or a generator, on purpose. Everything else is caught: a panic in a library written in Rust
# comes as pyo3_runtime.PanicException, a BaseException.
EXITS = (SystemExit, KeyboardInterrupt, GeneratorExit)
FRAMES = 40  # the innermost ones of each error; the rest of a recursion says nothing
CHAIN = 5


def log_failure(error: BaseException, doing: str) -> InferenceFailed:
    """Log the error's types and stack once, and return the 500 of the requests that it hit.

    Messages stay out of the log and of the answer: a tokenizer's may quote the text.

    Args:
        error: any error that is not a RequestError.
        doing: what failed, as the beginning of a sentence: "reading the request".

    Raises: `error` again if it ends the process.
    """
    raise_exits(error)
    logger.error("%s failed, messages left out: they may hold what a client sent\n%s", doing, _stack(error))
    return failure_of(error, doing)


def failure_of(error: BaseException, doing: str) -> InferenceFailed:
    """Return the 500 alone, for an error that has been logged. Raises `error` again if it ends the process."""
    raise_exits(error)
    return InferenceFailed(f"{doing} failed: {type(error).__name__}; the server's log has where")


def raise_exits(error: BaseException) -> None:
    """Raises `error` again if it ends the process."""
    if isinstance(error, EXITS):
        raise error


def _stack(error: BaseException | None) -> str:
    parts: list[str] = []
    while error is not None and len(parts) < CHAIN:
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-FRAMES))
        parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nraised from:\n".join(parts)
