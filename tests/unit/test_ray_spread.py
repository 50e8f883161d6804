"""What scripts/research/ray_spread.py counts, with hosts that answer at once; without Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray_spread
from ray_cluster import clients, network


def test_only_answers_after_the_warm_up_count_and_all_hosts_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(digit: int, host: str, kept: object) -> tuple[str, bool]:
        asked.append(host)
        time.sleep(0.02)
        return "200", True

    monkeypatch.setattr(clients, "ask", ask)
    chosen = ray_spread.parser().parse_args(["a.mar", "--seconds", "0.4", "--warm-up", "0.2", "--wait", "0.02"])
    found = ray_spread.measured(["rayhead", "rayone"], 2, chosen)
    assert set(asked) == {"rayhead", "rayone"}
    assert (found["most_per_s"], found["wrong"], set(found["statuses"])) == (100, 0, {"200"})
    assert found["statuses"]["200"] < len(asked)
    assert found["ms_p50"] >= 20


@pytest.mark.parametrize(("wrong", "status"), [(0, 0), (1, 1)])
def test_the_most_replicas_are_measured_on_one_host_too(
    wrong: int, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    points: list[tuple[int, int]] = []

    def row(hosts: list[str], replicas: int, *rest: Any) -> dict[str, Any]:
        points.append((len(hosts), replicas))
        return {"wrong": wrong, "statuses": {"200": 1}}

    monkeypatch.setattr(ray_spread, "row", row)
    monkeypatch.setattr(network, "why_not", lambda: None)
    monkeypatch.setattr(ray_spread, "conditions", lambda chosen: {})
    monkeypatch.setattr("sys.argv", ["ray_spread", "a.mar", "--log", str(tmp_path / "log")])
    assert ray_spread.main() == status
    assert points == [(1, 2), (2, 4), (3, 6), (1, 6)]


@pytest.mark.parametrize(
    ("status", "body", "outcome", "right"),
    [
        (200, b'[{"label": "7"}]', "200", True),
        (200, b'[{"label": "1"}]', "200", False),
        (200, b"cut", "200 no JSON", False),
        (503, b'{"code": 503, "type": "Busy"}', "503 Busy", True),
        (503, b'{"code": 500, "type": "Busy"}', "503 no JSON", True),
        (503, b"<html>", "503 no JSON", True),
        (500, b"[]", "500 no JSON", True),
    ],
)
def test_what_clients_take_for_an_outcome(status: int, body: bytes, outcome: str, right: bool) -> None:
    assert clients._outcome(status, body, "7") == (outcome, right)


def test_a_host_without_namespaces_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (network.why_not() or "").startswith("no network namespaces here: ")
