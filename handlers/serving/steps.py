"""How long each step of a batch takes."""

from __future__ import annotations

import time
from types import TracebackType


class Steps:
    """The steps of one batch. `with steps("run"): ...` measures a step, also one that ends with an error.

    Attributes:
        began_ns: when the batch came, in nanoseconds since 1970.
        spans: by step: its beginning and end, in nanoseconds after `began_ns`.
    """

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        self.spans: dict[str, tuple[int, int]] = {}
        self._zero = time.perf_counter_ns()
        self._step, self._begin = "", 0

    def __call__(self, step: str) -> Steps:
        """Return this object as the context manager of a step. Steps do not nest."""
        self._step = step
        return self

    def __enter__(self) -> None:
        self._begin = self.elapsed_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.spans[self._step] = (self._begin, self.elapsed_ns())

    def elapsed_ns(self) -> int:
        """Return the nanoseconds since the batch came."""
        return time.perf_counter_ns() - self._zero

    def ms(self) -> dict[str, float]:
        """Return the milliseconds of each step that ran."""
        return {step: (end - begin) / 1e6 for step, (begin, end) in self.spans.items()}
