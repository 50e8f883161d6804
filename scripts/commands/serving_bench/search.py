"""Search for the best number of workers, batch size and delay: one after another, by measuring, in few runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.errors import ServerError

from serving_bench import rows

MOST_CLIENTS = 512
GAIN = 1.05  # a setting is taken if it is so many times as fast: less is noise
DELAYS_MS = (1, 2, 5)


@dataclass(frozen=True)
class Choice:
    """How a model may be served."""

    workers: int
    batch_size: int
    delay_ms: int

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"{workers}, batch size {self.batch_size}, delay {self.delay_ms} ms"


@dataclass(frozen=True)
class Score:
    """What a choice reached, and with how many clients; clients is 0 if the choice never met the goal.

    trouble: then the reason, for a person; else what was wrong with more clients.
    """

    choice: Choice
    requests_per_s: float
    p99_ms: float
    clients: int
    trouble: str = ""


Measure = Callable[[Choice, int], dict[str, Any]]


@dataclass
class Search:
    """The search.

    measure: measure(choice, clients) gives a row of a closed loop. p99_ms: the goal in milliseconds; None: the most
    requests/s, whatever the latency. show: called with each line for a person. queue: requests that may wait for the
    model; the server refuses what comes beyond.
    """

    measure: Measure
    p99_ms: float | None
    show: Callable[[str], None]
    queue: int = MOST_CLIENTS
    scores: dict[Choice, Score] = field(default_factory=dict)

    def run(self, start: Choice, most_workers: int, most_batch: int) -> Score | None:
        """The best choice found; None if no choice meets the goal.

        Workers are doubled until that brings nothing; then the batch size is doubled, and halved; then the delay is
        varied. If the first batch size misses the goal, smaller ones are tried first.
        """
        best = self._first(start)
        if best is None:
            return None
        best = self._climb(
            best, (replace(best.choice, workers=n) for n in doubled(best.choice.workers, most_workers))
        )
        best = self._climb(
            best, (replace(best.choice, batch_size=n) for n in doubled(best.choice.batch_size, most_batch))
        )
        best = self._climb(best, (replace(best.choice, batch_size=n) for n in halved(best.choice.batch_size)))
        return self._best(best, [replace(best.choice, delay_ms=n) for n in DELAYS_MS if n != best.choice.delay_ms])

    def ranked(self, best: Score) -> list[Score]:
        """All choices that met the goal: `best`, then the others by requests/s, the most first.

        More workers that are less than GAIN times as fast do not come before `best`: they take memory for noise.
        """
        met = [score for score in self.scores.values() if score.clients and score.choice != best.choice]
        return [best, *sorted(met, key=lambda score: score.requests_per_s, reverse=True)]

    def _first(self, start: Choice) -> Score | None:
        """The first choice that meets the goal, from `start` with ever smaller batches."""
        for size in (start.batch_size, *halved(start.batch_size)):
            score = self.score(replace(start, batch_size=size))
            if score.clients:
                return score
        return None

    def _climb(self, best: Score, choices: Iterable[Choice]) -> Score:
        """Try one choice after another, while each is clearly better than the best so far."""
        for choice in choices:
            score = self.score(choice)
            if not score.clients or score.requests_per_s < best.requests_per_s * GAIN:
                break
            best = score
        return best

    def _best(self, best: Score, choices: Sequence[Choice]) -> Score:
        for choice in choices:
            score = self.score(choice)
            if score.clients and score.requests_per_s >= best.requests_per_s * GAIN:
                best = score
        return best

    def score(self, choice: Choice) -> Score:
        """The most requests/s that the choice reaches within the goal. Each choice is measured once."""
        if choice not in self.scores:
            self.scores[choice] = self._within_goal(choice) if self.p99_ms else self._saturated(choice)
            found = self.scores[choice]
            result = f"{found.requests_per_s:,.0f} requests/s, p99 {found.p99_ms:,.1f} ms at {clients_of(found)}"
            self.show(f"{choice}: {'; '.join(filter(None, (result if found.clients else '', found.trouble)))}")
        return self.scores[choice]

    def _saturated(self, choice: Choice) -> Score:
        """All workers busy, and more batches waiting, as far as the queue holds them."""
        full = choice.workers * choice.batch_size
        clients = min(MOST_CLIENTS, max(8, 4 * full), full + self.queue // 2)
        found = self._run(choice, clients)
        overfull = not found.clients and clients > self.queue >= 1  # if no worker had taken a batch for a moment
        return self._run(choice, self.queue) if overfull else found

    def _within_goal(self, choice: Choice) -> Score:
        """Clients are quadrupled while p99 holds, then doubled once from the last that held."""
        best, clients = Score(choice, 0, 0, 0), 1
        while clients <= MOST_CLIENTS:
            found = self._run(choice, clients)
            if found.p99_ms > (self.p99_ms or 0) or found.requests_per_s < best.requests_per_s:
                held = replace(best, trouble=found.trouble)
                return self._between(choice, held) if best.clients else self._missed(found)
            best, clients = found, clients * 4
        return self._between(choice, best)

    def _between(self, choice: Choice, best: Score) -> Score:
        """The better one of `best` and twice its clients."""
        if 2 * best.clients > MOST_CLIENTS:
            return best
        found = self._run(choice, 2 * best.clients)
        better = found.p99_ms <= (self.p99_ms or 0) and found.requests_per_s > best.requests_per_s
        return replace(found, trouble=best.trouble) if better else best

    def _missed(self, found: Score) -> Score:
        """The score of a choice that misses the goal even with one client."""
        late = f"too slow: p99 {found.p99_ms:,.1f} ms at {clients_of(found)}; wanted: {self.p99_ms:g} ms"
        return replace(found, clients=0, trouble=found.trouble or late)

    def _run(self, choice: Choice, clients: int) -> Score:
        """Measure once. Errors, wrong answers or a server that does not start count as no answers."""
        try:
            row = self.measure(choice, clients)
        except ServerError as error:
            return Score(choice, 0, float("inf"), 0, str(error))
        if trouble := rows.unsound(row):
            return Score(choice, 0, float("inf"), 0, f"{trouble}, at {clients} client{'s' if clients > 1 else ''}")
        return Score(choice, row["requests_per_s"], row["p99_ms"], clients)


def clients_of(score: Score) -> str:
    """ "1 client", "16 clients"."""
    return f"{score.clients} client{'s' if score.clients > 1 else ''}"


def doubled(value: int, most: int) -> list[int]:
    """Larger values, the last of them `most`."""
    found = []
    while value < most:
        value = min(2 * value, most)
        found.append(value)
    return found


def halved(value: int) -> list[int]:
    """Smaller values, down to 1."""
    found = []
    while value > 1:
        value //= 2
        found.append(value)
    return found
