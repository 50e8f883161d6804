"""How fronts on Ray choose replicas: by their own calls first, and what that brings in the simulation."""

from __future__ import annotations

from collections import Counter

import pytest
import ray_routing


def test_replicas_with_the_fewest_calls_come_first() -> None:
    routing = pytest.importorskip("ray_host.routing", reason="needs Ray")
    groups = routing.by_calls(["a", "b", "c", "d"], Counter({"a": 2, "b": 1, "d": 1}))
    assert [set(group) for group in groups] == [{"c"}, {"a", "b", "d"}]
    assert [set(group) for group in routing.by_calls(["a", "b"], Counter())] == [{"a", "b"}]
    assert routing.by_calls([], Counter()) == []


def test_equals_come_in_random_order() -> None:
    routing = pytest.importorskip("ray_host.routing", reason="needs Ray")
    assert len({tuple(routing.by_calls(["a", "b", "c"], Counter())[0]) for _ in range(200)}) == 6


def test_own_calls_keep_two_gpus_busier_than_two_at_random() -> None:
    speeds = {way: ray_routing.Simulation(2, way, clients=64).run(5)[0] for way in ray_routing.WAYS}
    assert speeds["own"] > 1.2 * speeds["two"]
    assert speeds["own"] > speeds["all"]
