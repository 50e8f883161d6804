"""TorchServe's logs: why a worker does not start."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from server.json_logs import plain

# The worker's own words may reach its log later than TorchServe's. TorchServe loses them at times, and starts another
# worker a second later: its words come within this time, too.
GRACE_S = 8.0
TAIL_BYTES = 4 << 20  # the part of a log in which the last failure is looked for

# TorchServe's worker writes one of these, and then the traceback, if it could not load its model.
_LOAD_FAILED = ("Backend worker process died", "Failed to load model", "Load model ")
_TRACEBACK = "Traceback (most recent call last):"
_NOT_FATAL = ("Exception in thread", "Exception ignored")
_CHAINED = ("During handling of the above", "The above exception was")
# If a handler cannot be imported, TorchServe looks for a handler of its own by that name, and reports only that.
_MISLEADING = "ts.torch_handler"
# In the last line of a failed load; what follows has the error's type.
_WRAPPED = "handlers.load_errors.LoadError: "
# After a RuntimeError, the worker ends itself with one of its own.
_ECHO = re.compile(r"RuntimeError: \d+ - (Unknown exception|System out of memory)")


class Logs:
    """The logs of a TorchServe from now on. folder: where it is, or will be, started."""

    def __init__(self, folder: Path) -> None:
        self.workers = folder / "logs" / "model_log.log"  # what workers write
        self.server = folder / "logs" / "ts_log.log"  # what TorchServe writes itself
        self.offsets = {log: log.stat().st_size if log.is_file() else 0 for log in (self.workers, self.server)}
        self.seen: dict[str, float] = {}

    def load_error(self, model: str) -> str | None:
        """Why a worker of `model` could not load, in one line; None if none has failed so far."""
        if errors := load_errors(plain(read_from(self.workers, self.offsets[self.workers])), model):
            return errors[-1]
        failed = re.search(rf"Load model failed: {re.escape(model)}, error: (.*)", self._of_server())
        if failed and time.monotonic() - self.seen.setdefault(model, time.monotonic()) > GRACE_S:
            return f"its process ended and gave no reason ({failed[1].strip()}); there may be too little memory"
        return None

    def _of_server(self) -> str:
        return plain(read_from(self.server, self.offsets[self.server]))

    def last_error(self, model: str) -> str | None:
        """Why a worker of `model` last failed to load, however long ago; None if the log has nothing of it."""
        errors = load_errors(_tail(self.workers), model)
        return errors[-1] if errors else None

    def stopped(self, model: str) -> set[str]:
        """The ids of the workers of `model` that have failed, and wait for another try or have given up.

        TorchServe's management API describes them as it describes a worker that is loading: "UNLOADING".
        """
        change = re.compile(rf"\bW-(\d+)-{re.escape(model)}_v?\d\S* State change \w+ -> (\w+)")
        last = dict(change.findall(_tail(self.server)))
        return {worker for worker, state in last.items() if state == "WORKER_STOPPED"}


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
            yield from _cause(chain)
            announced, chain = True, []
        elif text == _TRACEBACK:
            error = _end_of_traceback(rest)
            if error and announced and not before.startswith(_NOT_FATAL):
                chain.append(error)
        elif chain and text.strip() and not text.startswith(_CHAINED):
            yield from _cause(chain)
            announced, chain = stream == "stderr", []
        before = text or before
    yield from _cause(chain)


def _end_of_traceback(texts: Iterator[str]) -> str:
    """The first line that is not indented: the exception and its message; "" if it is not written yet.

    A line that ends with a colon is continued with the next one, as PyTorch writes mismatched weights.
    """
    error = next((text for text in texts if text and not text.startswith(" ")), "")
    return f"{error} {next(texts, '').strip()}".strip() if error.endswith(":") else error


def _cause(chain: list[str]) -> list[str]:
    """The last exception of a chain that is not one of TorchServe's own misleading ones; [] for an echo alone."""
    telling = [error for error in chain if _MISLEADING not in error]
    return [error.removeprefix(_WRAPPED) for error in (telling or chain)[-1:] if not _ECHO.fullmatch(error)]


def _tail(path: Path) -> str:
    """The last TAIL_BYTES of a log."""
    return plain(read_from(path, max(0, path.stat().st_size - TAIL_BYTES))) if path.is_file() else ""


def read_from(path: Path, offset: int) -> str:
    """The text of a log after `offset` bytes; all of it if it was rolled over since; "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        stream.seek(offset if offset <= path.stat().st_size else 0)
        return stream.read().decode(errors="replace")
