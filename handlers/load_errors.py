"""Every failure of a load ends in one line that says what is wrong: the last that the worker writes.

TorchServe 0.12 does not do that by itself (ts/model_service_worker.py and ts/model_loader.py). If a handler raises
ImportError, it looks for a handler of its own, and reports that it found none. A RuntimeError or MemoryError becomes
"500 - Unknown exception" or "507 - System out of memory". Any other exception is written as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# These reach the log as they are, in one line; this project's own errors are among them.
PLAIN = (ValueError, OSError)
REPORTED_AS_ANOTHER = (ImportError, RuntimeError, MemoryError)
EXITS = (SystemExit, KeyboardInterrupt, GeneratorExit)
LONGEST = 1000  # characters
NO_MEMORY = "There is too little memory: fewer workers, a smaller batchSize or another device leave more to this one"
NO_PACKAGE = "It has to be importable in TorchServe's environment, in the version of constraints.txt"


class LoadError(ValueError):
    """A load failed. The message has the error's type and says what to do."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an error of the block into one that TorchServe writes as it is, in one line, as its last."""
    try:
        yield
    except PLAIN as error:
        if not isinstance(error, REPORTED_AS_ANOTHER) and "\n" not in str(error):
            raise
        raise LoadError(one_line(error)) from error
    except EXITS:
        raise
    except BaseException as error:  # a panic in a library written in Rust is no Exception
        raise LoadError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """Return the type, the message in one line, and what to do about it if that is known."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
    return f"{said.rstrip('.:')}. {hint}" if (hint := _hint(error)) else said


def _hint(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return NO_PACKAGE
    is_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    return NO_MEMORY if is_memory else ""
