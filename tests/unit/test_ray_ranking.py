"""How fronts on Ray choose replicas: by their own calls first, and what that brings in the simulation."""

from __future__ import annotations

import ray_routing
from ray_host.ranking import ASK_AGAIN_S, Ranking


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def ranking(clock: Clock | None = None, **calls: int) -> Ranking[str]:
    found: Ranking[str] = Ranking(clock or Clock())
    for name, count in calls.items():
        for _ in range(count):
            found.sent(name)
    return found


def sets(groups: list[list[str]]) -> list[set[str]]:
    return [set(group) for group in groups]


def test_replicas_with_the_fewest_calls_come_first() -> None:
    assert sets(ranking(a=2, b=1, d=1).groups("abcd", "abcd")) == [{"c"}, {"a", "b", "d"}]
    assert sets(ranking().groups("ab", "ab")) == [{"a", "b"}]
    assert ranking().groups("", "") == []


def test_a_call_that_ended_counts_no_more() -> None:
    found = ranking(a=1, b=1)
    found.ended("a")
    assert sets(found.groups("ab", "ab")) == [{"a"}, {"b"}]
    found.ended("a")  # one too many is no credit
    found.sent("a")
    assert sets(found.groups("ab", "ab")) == [{"a", "b"}]


def test_equals_come_in_random_order() -> None:
    assert len({tuple(ranking().groups("abc", "abc")[0]) for _ in range(200)}) == 6


def test_no_call_waits_for_a_replica_that_does_not_answer() -> None:
    """It has no calls, and is still not alone in the first group: Ray asks it beside the others."""
    clock = Clock()
    found = ranking(clock, a=1, b=2)
    assert sets(found.groups("abx", "ab")) == [{"a", "x"}, {"b"}]
    clock.now += ASK_AGAIN_S / 2
    assert sets(found.groups("abx", "ab")) == [{"a"}, {"b"}]
    clock.now += ASK_AGAIN_S
    assert sets(found.groups("abx", "ab")) == [{"a", "x"}, {"b"}]
    assert sets(found.groups("abx", "abx")) == [{"x"}, {"a", "b"}]


def test_unknown_replicas_are_asked_if_none_is_known() -> None:
    found = ranking()
    for _ in range(2):
        assert sets(found.groups("ab", "")) == [{"a", "b"}]


def test_own_calls_keep_two_gpus_busier_than_two_at_random() -> None:
    speeds = {way: ray_routing.Simulation(2, way, clients=64).run(5)[0] for way in ray_routing.WAYS}
    assert speeds["own"] > 1.2 * speeds["two"]
    assert speeds["own"] > speeds["all"]
