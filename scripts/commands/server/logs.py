"""TorchServe's logs: why a worker does not start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# TorchServe's worker writes one of these, and then the traceback, if it could not load its model.
_LOAD_FAILED = ("Backend worker process died", "Failed to load model", "Load model ")
_TRACEBACK = "Traceback (most recent call last):"
_NOT_FATAL = ("Exception in thread", "Exception ignored")
_CHAINED = ("During handling of the above", "The above exception was")
# If a handler cannot be imported, TorchServe looks for a handler of its own by that name, and reports only that.
_MISLEADING = "ts.torch_handler"


def model_log(folder: Path) -> Path:
    """The log of all workers of the TorchServe that was started in `folder`."""
    return folder / "logs" / "model_log.log"


def load_errors(log: str, model: str) -> list[str]:
    """Why workers could not load `model`: one line per failure, such as "ValueError: PyTorch sees no GPU".

    log: the text of model_log.log, or of all that TorchServe wrote. Each worker's oldest failure comes first.
    """
    workers = _by_worker(log, model).items()
    return [error for (_, stream), texts in workers for error in _errors(stream, texts)]


def _by_worker(log: str, model: str) -> dict[tuple[str, str], list[str]]:
    """What each worker of the model wrote, by the worker's port and stream.

    The lines are "2026-11-24T14:33:41,672 [INFO ] W-9002-NAME_VERSION-stdout MODEL_LOG - what the worker wrote".
    Names and versions may hold dashes and underscores; a version begins with a digit.
    """
    its_line = re.compile(rf"\bW-(\d+)-{re.escape(model)}_v?\d\S*-(stdout|stderr) MODEL_LOG - (.*)")
    found: dict[tuple[str, str], list[str]] = {}
    for line in log.splitlines():
        if parts := its_line.search(line):
            found.setdefault((parts[1], parts[2]), []).append(parts[3])
    return found


def _errors(stream: str, texts: Iterable[str]) -> Iterator[str]:
    """The errors of failed loads. On stderr every traceback counts: the worker's program itself has failed there."""
    announced, before, chain = stream == "stderr", "", list[str]()
    rest = iter(texts)
    for text in rest:
        if text.startswith(_LOAD_FAILED):
            announced = True
        elif text == _TRACEBACK:
            error = _end_of_traceback(rest)
            if error and announced and not before.startswith(_NOT_FATAL):
                chain.append(error)
        elif chain and text.strip() and not text.startswith(_CHAINED):
            yield _cause(chain)
            announced, chain = stream == "stderr", []
        before = text or before
    if chain:
        yield _cause(chain)


def _end_of_traceback(texts: Iterator[str]) -> str:
    """The first line that is not indented: the exception and its message; "" if it is not written yet."""
    return next((text for text in texts if text and not text.startswith(" ")), "")


def _cause(chain: list[str]) -> str:
    """The last exception of a chain, unless that is TorchServe's misleading one."""
    telling = [error for error in chain if _MISLEADING not in error]
    return (telling or chain)[-1]


def read_from(path: Path, offset: int) -> str:
    """The text of a log after `offset` bytes; all of it if it was rolled over since; "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        stream.seek(offset if offset <= path.stat().st_size else 0)
        return stream.read().decode(errors="replace")
