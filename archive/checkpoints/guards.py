"""Whatever a checkpoint holds ends in a message: which file, what was wrong with it, and the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from archive.checkpoints.sources import CheckpointError

LONGEST = 600  # characters of another library's message that are passed on


@contextlib.contextmanager
def reading(what: str, way_out: str) -> Iterator[None]:
    """Raise CheckpointError for whatever goes wrong inside.

    what: the file, or what was made of it. way_out: what a person can do, as a sentence without its full stop.
    What a person or the interpreter stops with passes.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(f"{what}: {described(error)}. {way_out}") from error


def is_failure(error: BaseException) -> bool:
    """Whether it is an error of what was run: an Exception, or a panic of the tokenizers library, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def described(error: BaseException) -> str:
    """The error's class and message, in one line of bounded length."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
