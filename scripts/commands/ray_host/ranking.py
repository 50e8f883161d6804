"""Which replica gets a front's next call: one that has the fewest of this front's calls. Imports nothing of Ray.

Ray's own router takes the better of two replicas at random. A front has few calls on their way, as each holds a
batch. So two at random leave some replicas idle while others have several batches waiting. On two H200 with 12
replicas that gave 1.84 to 1.86 times the texts/s of one H200 (docs/benchmarks.md). scripts/research/ray_routing.py
simulates both ways. To look at the queue lengths of all replicas alone would be worse: a front learns a replica's
length only when it sends it something, and would avoid one that was busy then.

A replica whose machine has died has no calls on their way, and would come first until Ray gives the machine up, after
many seconds. Each call would wait for it. So a replica whose queue length is not known (it is new, was not asked for
long, or does not answer) is asked beside a known one, and no call waits for it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

ASK_AGAIN_S = 1.0  # a replica that did not say its queue length is asked again after this time


class Ranking(Generic[Name]):
    """Counts a front's calls by replica.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_way: Counter[Name] = Counter()
        self._asked: dict[Name, float] = {}  # when a replica was asked whose queue length is not known
        self._clock = clock

    def sent(self, replica: Name) -> None:
        """Count a call that is sent."""
        self._on_way[replica] += 1

    def ended(self, replica: Name) -> None:
        """Forget a call that is answered, refused by the replica, or lost with it."""
        self._on_way[replica] -= 1
        if self._on_way[replica] <= 0:
            del self._on_way[replica]

    def groups(self, replicas: Sequence[Name], known: Collection[Name]) -> list[list[Name]]:
        """Return replicas in groups, the best first, each in random order.

        Args:
            replicas: that can have the call.
            known: those of them whose queue length is known. The caller takes one of these, if there is one, and asks
                the unknown ones of its group in the background.
        """
        shuffled = random.sample(replicas, len(replicas))
        unknown = [name for name in shuffled if name not in known]
        least = min((self._on_way[name] for name in known), default=0)
        first = [name for name in shuffled if name in known and self._on_way[name] == least]
        rest = [name for name in shuffled if name in known and self._on_way[name] != least]
        if not first:
            return [unknown] if unknown else []
        first += self._to_be_asked(unknown)
        return [first, rest] if rest else [first]

    def _to_be_asked(self, unknown: Sequence[Name]) -> list[Name]:
        """Return those that were not asked a short time ago, and note that they are asked now."""
        now = self._clock()
        due = [name for name in unknown if now - self._asked.get(name, -ASK_AGAIN_S) >= ASK_AGAIN_S]
        self._asked = {name: when for name, when in self._asked.items() if name in unknown} | dict.fromkeys(due, now)
        return due
