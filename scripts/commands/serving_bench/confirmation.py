"""Confirm a choice of scripts/tune in an open loop; if it fails, a lower rate, then the next best choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.errors import ServerError

from serving_bench import rows
from serving_bench.rows import Row
from serving_bench.search import NEAR_P99, Choice, Score

TRIES = 3  # choices
SHARES = (0.7, 0.5)  # of the closed loop's rate: what is tried with each choice


class Loads(Protocol):
    """Puts loads on a model that is served as a choice says. All methods raise ServerError."""

    def measure_again(self, choice: Choice, clients: int) -> dict[str, Any]:
        """A row of a closed loop whose load comes from the open loop's generator."""
        ...

    def measure_open(self, choice: Choice, rate: float) -> dict[str, Any]:
        """A row of an open loop at `rate` requests/s."""
        ...


@dataclass(frozen=True)
class Attempt:
    """One open loop.

    closed: requests/s of the closed loop that it goes by. share: what of it was asked for. row: None if the model
    could not be served; then `trouble` has the reason. trouble: why the goal was missed; "" if it was met.
    """

    score: Score
    closed: float
    share: float
    row: Row | None
    trouble: str

    @property
    def rate(self) -> float:
        """Requests/s that were sent."""
        return self.closed * self.share

    def __str__(self) -> str:
        if self.row is None:
            return f"{self.score.choice}: {self.trouble}"
        of = f"{self.share:.0%} of {self.closed:,.0f}"
        result = self.trouble or f"p99 {self.row['p99_ms']:,.1f} ms, no errors, no wrong answers"
        return f"{self.score.choice}, in an open loop at {self.rate:,.0f} requests/s ({of}): {result}"


@dataclass
class Confirmation:
    """The confirmation.

    p99_ms: the goal; None: answers need only be right. show: called with each line for a person. attempts: all so
    far.
    """

    loads: Loads
    p99_ms: float | None
    show: Callable[[str], None]
    attempts: list[Attempt] = field(default_factory=list)

    def run(self, ranked: Sequence[Score]) -> Attempt | None:
        """The attempt that met the goal at the highest rate; None if none did.

        Args:
            ranked: what the search measured, the best first.
        """
        best: Attempt | None = None
        for score in ranked[:TRIES]:
            if best is not None and score.requests_per_s * SHARES[0] <= best.rate:
                break  # neither this one nor those behind it can be better
            for attempt in self._attempts(score):
                if not attempt.trouble:
                    best = attempt if best is None or attempt.rate > best.rate else best
                    break
            if best is not None and best.share == SHARES[0]:
                break
        return best

    def _attempts(self, score: Score) -> Iterator[Attempt]:
        """Try a choice at each share of its rate."""
        closed = 0.0
        for share in SHARES:
            try:
                closed = closed or self._closed(score)
                row = self._open(score.choice, closed * share)
                attempt = Attempt(score, closed, share, row, self._trouble(row))
            except ServerError as error:
                attempt = Attempt(score, closed, share, None, str(error))
            self.attempts.append(attempt)
            self.show(f"{'NOT confirmed' if attempt.trouble else 'confirmed'}: {attempt}")
            yield attempt
            if attempt.row is None:
                return

    def _closed(self, score: Score) -> float:
        """The closed loop's rate: the lower one of the search's and another one, measured now.

        The search takes the best of many short measurements, which is one that other programs disturbed little. And
        wrk may have made its load, which leaves the server more CPU time than the open loop's generator does.

        Raises ServerError if nothing is answered any more.
        """
        row = self.loads.measure_again(score.choice, score.clients)
        again = float(row["requests_per_s"])
        if not again:
            raise ServerError(f"a second closed loop got no answer; {rows.unsound(row)}")
        self.show(f"{score.choice}: {again:,.0f} requests/s in a second closed loop")
        return min(again, score.requests_per_s)

    def _open(self, choice: Choice, rate: float) -> Row:
        """The row of an open loop. What misses the p99 by little is measured again, and the better one counts.

        Raises ServerError.
        """
        row = self.loads.measure_open(choice, rate)
        if rows.unsound(row) or self.p99_ms is None or not self.p99_ms < row["p99_ms"] <= self.p99_ms * NEAR_P99:
            return row
        again = self.loads.measure_open(choice, rate)
        told = [self._trouble(found) or f"p99 {found['p99_ms']:,.1f} ms" for found in (row, again)]
        self.show(
            f"{choice}: measured twice at {rate:,.0f} requests/s ({told[0]}, then {told[1]}): the better one counts"
        )
        return row if rows.unsound(again) else min(row, again, key=lambda found: float(found["p99_ms"]))

    def _trouble(self, row: Row) -> str:
        """Why the row misses the goal; "" if it does not."""
        p99 = row["p99_ms"]
        found = [rows.unsound(row)]
        if p99 is not None and (found[0] or (self.p99_ms and p99 > self.p99_ms)):
            found.insert(0, f"p99 {p99:,.1f} ms{f' (wanted: {self.p99_ms:g})' if self.p99_ms else ''}")
        return "; ".join(filter(None, found))
