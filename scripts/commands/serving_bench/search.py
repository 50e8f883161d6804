"""Search for the best number of workers, batch size and delay: one after another, by measuring, in few runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.errors import ServerError

from serving_bench import rows
from serving_bench.progress import Progress

MOST_CLIENTS = 512
GAIN = 1.05  # a setting is taken if it is so many times as fast: less is noise
NEAR = 1.03  # so near to GAIN, noise may decide: such a setting is measured again
NEAR_P99 = 1.25  # a p99 that is at most so many times the goal may have missed it by noise
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

    trouble: then the reason, for a person; else what was wrong with more clients. is_served: whether the server could
    serve the model so.
    """

    choice: Choice
    requests_per_s: float
    p99_ms: float
    clients: int
    trouble: str = ""
    is_served: bool = True


Measure = Callable[[Choice, int], dict[str, Any]]
Step = Callable[[Score, Iterable[Choice]], Score]  # from the best score and choices to try, to the best score
Choices = Callable[[Choice], list[Choice]]


@dataclass
class Search:
    """The search.

    measure: measure(choice, clients) gives a row of a closed loop. p99_ms: the goal in milliseconds; None: the most
    requests/s, whatever the latency. show: called with each line for a person. queue: requests that may wait for the
    model; the server refuses what comes beyond. progress: counts the choices that are measured, as points.

    A measurement that alone would reject a choice, or that is too near to the limit, is repeated.
    """

    measure: Measure
    p99_ms: float | None
    show: Callable[[str], None]
    queue: int = MOST_CLIENTS
    scores: dict[Choice, Score] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress(at_most=True))
    _notes: list[str] = field(default_factory=list)  # on the choice that is being measured
    _settled: set[Choice] = field(default_factory=set)

    def run(self, start: Choice, most_workers: int, most_batch: int) -> Score | None:
        """The best choice found; None if no choice meets the goal.

        Workers are doubled until that brings nothing; then the batch size is doubled, and halved; then the delay is
        varied. If the first batch size misses the goal, smaller ones are tried first.
        """
        steps: list[tuple[Step, Choices]] = [
            (self._climb, lambda at: [replace(at, workers=n) for n in doubled(at.workers, most_workers)]),
            (self._climb, lambda at: [replace(at, batch_size=n) for n in doubled(at.batch_size, most_batch)]),
            (self._climb, self._smaller),
            (self._best, lambda at: [replace(at, delay_ms=n) for n in DELAYS_MS if n != at.delay_ms]),
        ]
        tried_first = [replace(start, batch_size=size) for size in (start.batch_size, *halved(start.batch_size))]
        planned = max(place + self._left(choice, steps) for place, choice in enumerate(tried_first, 1))
        self.progress.begin(planned, 0)
        self.show(f"at most {planned} points to measure: settings, each in one or more runs")
        best = self._first(tried_first)
        for place, (step, choices) in enumerate(steps):
            if best is None:
                return None
            self.progress.remaining(self._left(best.choice, steps[place:]))
            best = step(best, choices(best.choice))
        return best

    def _smaller(self, at: Choice) -> list[Choice]:
        """Return choices with ever smaller batches; none if a smaller batch has been measured and was slower."""
        if any(
            replace(at, batch_size=tried.batch_size) == tried
            for tried in self.scores
            if tried.batch_size < at.batch_size
        ):
            return []
        return [replace(at, batch_size=n) for n in halved(at.batch_size)]

    def _left(self, choice: Choice, steps: Sequence[tuple[Step, Choices]]) -> int:
        """Return how many choices are measured at most from here on."""
        return len({new for _, choices in steps for new in choices(choice)} - self.scores.keys())

    def ranked(self, best: Score) -> list[Score]:
        """All choices that met the goal: `best`, then the others by requests/s, the most first.

        More workers that are less than GAIN times as fast do not come before `best`: they take memory for noise.
        """
        met = [score for score in self.scores.values() if score.clients and score.choice != best.choice]
        return [best, *sorted(met, key=lambda score: score.requests_per_s, reverse=True)]

    def _first(self, choices: Iterable[Choice]) -> Score | None:
        """The first choice that meets the goal."""
        return next((score for choice in choices if (score := self.score(choice)).clients), None)

    def _climb(self, best: Score, choices: Iterable[Choice]) -> Score:
        """Try one choice after another, while each is clearly better than the best so far."""
        for choice in choices:
            score = self._clear(self.score(choice), best)
            if not score.clients or score.requests_per_s < best.requests_per_s * GAIN:
                break
            best = score
        return best

    def _best(self, best: Score, choices: Iterable[Choice]) -> Score:
        for choice in choices:
            score = self._clear(self.score(choice), best)
            if score.clients and score.requests_per_s >= best.requests_per_s * GAIN:
                best = score
        return best

    def _clear(self, score: Score, best: Score) -> Score:
        """Measure a choice again if it is about GAIN times as fast as `best`; then the mean of both counts."""
        limit, choice = best.requests_per_s * GAIN, score.choice
        is_near = limit / NEAR <= score.requests_per_s < limit * NEAR
        if not score.clients or not is_near or choice in self._settled:
            return score
        self._settled.add(choice)
        again = self._run(choice, score.clients)
        why = f"{choice}: measured again, as it is about {GAIN:g} times as fast as the best so far"
        if not again.clients:
            self.show(f"{why}: {again.trouble}; the first measurement counts")
            return score
        rates = (score.requests_per_s, again.requests_per_s)
        found = replace(score, requests_per_s=sum(rates) / 2, p99_ms=min(score.p99_ms, again.p99_ms))
        self.scores[choice] = found
        self.show(f"{why}: {rates[0]:,.0f} and {rates[1]:,.0f} requests/s; the mean counts")
        return found

    def score(self, choice: Choice) -> Score:
        """The most requests/s that the choice reaches within the goal. Each choice is asked for once."""
        if choice not in self.scores:
            self._notes.clear()
            self.scores[choice] = self._within_goal(choice) if self.p99_ms else self._saturated(choice)
            found = self.scores[choice]
            result = f"{found.requests_per_s:,.0f} requests/s, p99 {found.p99_ms:,.1f} ms at {clients_of(found)}"
            words = "; ".join(filter(None, (result if found.clients else "", found.trouble, *self._notes)))
            self.show(f"{self.progress.finished()}{choice}: {words}")
        return self.scores[choice]

    def _saturated(self, choice: Choice) -> Score:
        """All workers busy, and more batches waiting, as far as the queue holds them."""
        full = choice.workers * choice.batch_size
        clients = min(MOST_CLIENTS, max(8, 4 * full), full + self.queue // 2)
        found = self._run(choice, clients)
        if not found.clients and clients > self.queue >= 1:  # as if no worker had taken a batch for a moment
            clients = self.queue
            found = self._run(choice, clients)
        return found if found.clients else self._again(found, clients)

    def _within_goal(self, choice: Choice) -> Score:
        """Clients are quadrupled while p99 holds, then doubled once from the last that held."""
        best, clients = Score(choice, 0, 0, 0), 1
        while clients <= MOST_CLIENTS:
            found = self._run(choice, clients)
            goal = self.p99_ms or 0
            if found.p99_ms > goal and (not best.clients or found.p99_ms <= goal * NEAR_P99):
                found = self._again(found, clients)
            if found.p99_ms > goal or found.requests_per_s < best.requests_per_s:
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

    def _again(self, first: Score, clients: int) -> Score:
        """Measure a second time what missed the goal; the better measurement counts."""
        if not first.is_served:
            return first
        second = self._run(first.choice, clients)
        told = [_short(score) for score in (first, second)]
        at = f"{clients} client{'s' if clients > 1 else ''}"
        self._notes.append(f"measured twice at {at} ({told[0]}, then {told[1]}): the better one counts")
        return min(first, second, key=lambda score: score.p99_ms)

    def _run(self, choice: Choice, clients: int) -> Score:
        """Measure once. Errors, wrong answers or a server that does not start count as no answers."""
        try:
            row = self.measure(choice, clients)
        except ServerError as error:
            return Score(choice, 0, float("inf"), 0, str(error), is_served=False)
        if trouble := rows.unsound(row):
            return Score(choice, 0, float("inf"), 0, f"{trouble}, at {clients} client{'s' if clients > 1 else ''}")
        return Score(choice, row["requests_per_s"], row["p99_ms"], clients)


def _short(score: Score) -> str:
    return f"p99 {score.p99_ms:,.1f} ms" if score.clients else "errors or wrong answers"


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
