"""Say why scripts/tune could confirm no setting, and which command to try next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from serving_bench import rows
from serving_bench.confirmation import Attempt
from serving_bench.rows import QUEUE_FULL, Row
from serving_bench.search import Score

QUEUE_S = 1.0  # how long requests may wait if no p99 is wanted
SPARE = 1.2  # by which a wider --p99-ms is above what was measured


@dataclass(frozen=True)
class Cause:
    """A possible reason, in words, and the options that may help; () if none does."""

    words: str
    options: tuple[str, ...] = ()


LONGER = Cause("the machine's speed changes from one moment to the next; measure longer", ("--seconds", "20"))


@dataclass(frozen=True)
class Conditions:
    """What was asked for, and how it was measured.

    p99_ms: None: no goal. queue: requests that may wait for the model. queue_in_archive: whether the archive sets
    it. generator: processes of the open loop. cores: of this machine.
    """

    p99_ms: float | None
    queue: int
    queue_in_archive: bool
    generator: int
    cores: int


def causes(attempts: Sequence[Attempt], conditions: Conditions) -> list[Cause]:
    """What may have kept the goal from being met, the likeliest first. At least one."""
    measured = [(attempt, attempt.row) for attempt in attempts if attempt.row is not None]
    if not measured:
        return [Cause("the model did not answer any more; try fewer workers", ("--most-workers", "1"))]
    nearest, row = min(measured, key=lambda pair: _distance(pair[1]))
    found = [
        *_wrong(row),
        *_late(row, conditions),
        *_disturbed(row),
        *_errors(nearest, row, conditions),
        *_too_tight(row, conditions),
    ]
    if any(cause.options for cause in found) or rows.disturbed(row):
        return found
    return [*found, LONGER]


def missed(attempts: Sequence[Attempt], p99_ms: float | None) -> str:
    """Return which limits were missed, and in how many open loops: "errors in 2 of 6, p99 above 50 ms in 6 of 6".

    Args:
        p99_ms: the goal, None if there is none.
    """
    measured = [attempt.row for attempt in attempts if attempt.row is not None]
    late = [row for row in measured if p99_ms is not None and row["p99_ms"] is not None and row["p99_ms"] > p99_ms]
    counts = {
        "no start": len(attempts) - len(measured),
        "errors": sum(row["errors"] > 0 for row in measured),
        "wrong answers": sum((row["answers_wrong"] or 0) > 0 for row in measured),
        "no answer at all": sum(row["p99_ms"] is None for row in measured),
        f"p99 above {p99_ms or 0:g} ms": len(late),
    }
    return ", ".join(f"{what} in {count} of {len(attempts)}" for what, count in counts.items() if count)


def _distance(row: Row) -> tuple[float, ...]:
    """How far a row is from the goal."""
    return (row["answers_wrong"] or 0, row["errors"], row["p99_ms"] or math.inf)


def _wrong(row: Row) -> list[Cause]:
    if not row["answers_wrong"]:
        return []
    return [Cause(f"answers differ from those to requests sent alone: one {row['wrong']}")]


def _late(row: Row, conditions: Conditions) -> list[Cause]:
    late, p99 = row["late_p99_ms"], row["p99_ms"]
    if late is None or late <= rows.MOST_LATE * (p99 or 0):
        return []
    words = f"the load generator sent requests {late:.1f} ms late (p99), which is part of the p99"
    more = min(2 * conditions.generator, conditions.cores)
    if more > conditions.generator:
        return [Cause(f"{words}: give it more processes", ("--generator-threads", str(more)))]
    return [Cause(f"{words}: it needs a core that nothing else uses")]


def _disturbed(row: Row) -> list[Cause]:
    if not rows.disturbed(row):
        return []
    return [Cause(f"other programs kept {row['cores']['elsewhere']:.1f} CPU cores busy: stop them, and try again")]


def _errors(attempt: Attempt, row: Row, conditions: Conditions) -> list[Cause]:
    kinds = rows.kinds_of(row)
    if not kinds:
        return []
    full = [kind for kind in kinds if rows.is_queue_full(kind, row["messages"].get(kind, ""))]
    found = [_full_queue(attempt.rate, row, conditions)] if full else []
    if others := [kind for kind in kinds if kind not in full]:
        words = f"requests failed ({', '.join(others)}): docs/troubleshooting.md says what the errors mean"
        found.append(Cause(words))
    return found


def _full_queue(rate: float, row: Row, conditions: Conditions) -> Cause:
    """Bursts fill a queue that holds less than what may wait within the goal. Only overload fills a longer one."""
    holds_s = conditions.queue / rate
    full = f"the queue was full: it holds {conditions.queue} requests, which come within {holds_s * 1e3:,.0f} ms"
    if words := row["messages"].get(QUEUE_FULL):
        full += f" (TorchServe's words for it, as for a model without workers: {words})"
    wanted_s = QUEUE_S if conditions.p99_ms is None else conditions.p99_ms / 1e3
    if holds_s >= wanted_s:
        rates = f"{row['requests_per_s']:,.0f} of {rate:,.0f} requests/s were answered"
        return Cause(f"{full}. {rates}, so the model was slower than before, and a longer queue would not help")
    longer = 1 << math.ceil(math.log2(rate * wanted_s))
    if conditions.queue_in_archive:
        return Cause(f"{full}. Set jobQueueSize: {longer} in the archive's model-config.yaml")
    return Cause(
        f"{full}. Make it longer, here and where the model serves", ("--setting", f"job_queue_size={longer}")
    )


def _too_tight(row: Row, conditions: Conditions) -> list[Cause]:
    p99 = row["p99_ms"]
    if conditions.p99_ms is None or p99 is None or p99 <= conditions.p99_ms:
        return []
    wider = str(math.ceil(SPARE * p99))
    return [
        Cause(
            f"the goal may be too tight: the p99 came to {p99:,.1f} ms, wanted {conditions.p99_ms:g}",
            ("--p99-ms", wider),
        )
    ]


def causes_of_none(scores: Sequence[Score], p99_ms: float | None) -> list[Cause]:
    """Why no setting met the goal even in a closed loop. scores: all that were measured."""
    late = [score.p99_ms for score in scores if math.isfinite(score.p99_ms)]
    if p99_ms is None or not late:
        return [
            Cause("requests failed or were answered wrongly, see above: docs/troubleshooting.md lists the errors")
        ]
    wider = str(math.ceil(SPARE * min(late)))
    return [
        Cause(f"the goal is too tight: the least p99 was {min(late):,.1f} ms, wanted {p99_ms:g}", ("--p99-ms", wider))
    ]


def next_command(arguments: Sequence[str], found: Sequence[Cause]) -> str:
    """The command line to try next: the same, with the options of the first cause that has some."""
    options = next((cause.options for cause in found if cause.options), ())
    return shlex.join(["scripts/tune", *_without(arguments, options), *options])


def _without(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments without the options that are given anew; --setting adds to others."""
    name = options[0] if options else ""
    if name in ("", "--setting"):
        return list(arguments)
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != name and not argument.startswith(f"{name}="):
            kept.append(argument)
        skip = argument == name
    return kept
