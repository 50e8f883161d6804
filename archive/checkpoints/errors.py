"""Whatever is wrong with a checkpoint ends in one message: which file, what is wrong with it, and the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

LONGEST_MESSAGE = 600  # characters of another library's message that are passed on


class CheckpointError(ValueError):
    """The checkpoint cannot be served. The message says what was found, what is wanted, and the way out."""


@contextlib.contextmanager
def explain_failure(what: str, way_out: str) -> Iterator[None]:
    """Turn whatever goes wrong in the block into a CheckpointError. KeyboardInterrupt and its like pass.

    Args:
        what: what went wrong, such as "its tokenizer cannot be loaded".
        way_out: what a person can do, as a sentence without its full stop.

    Raises:
        CheckpointError: the block's own, or one for any other failure.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(f"{what}: {one_line(error)}. {way_out}") from error


def is_failure(error: BaseException) -> bool:
    """Return whether it is an error of the code that ran.

    That is an Exception, or a panic of the tokenizers library, which derives from BaseException.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """Return the error's class and message in one line of at most LONGEST_MESSAGE characters and the class's name."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
