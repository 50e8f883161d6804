"""When a request came, as a proxy or a host says, and how long it then waited for its batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import yaml

from handlers.hosts import rows
from handlers.hosts.async_model import AsyncModel
from handlers.hosts.messages import HttpRequest, HttpResponse
from handlers.hosts.model import Model
from handlers.protocol import adapters, arrivals, deadlines
from handlers.protocol.errors import DeadlinePassed
from handlers.protocol.interface import Interface
from handlers.protocol.reader import Reader
from handlers.protocol.request import Request
from handlers.protocol.row import Row
from handlers.serving.metrics import HISTOGRAMS, BatchMetrics
from handlers.serving.steps import Steps
from tests.pages import ROOT

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("sent", "came"),
    [
        ("t=1799999999.250", NOW - 0.75),  # nginx; Envoy with "t=%START_TIME(%s.%3f)%"
        ("1799999999.250", NOW - 0.75),
        ("t=1799999999.2", NOW - 0.8),
        ("t=1799999999.250001", NOW - 0.749999),
        ("1799999999250", NOW - 0.75),  # Heroku, HAProxy
        ("t=1799999999250000", NOW - 0.75),  # Apache
        ("t=1799999999250000000", NOW - 0.75),
        ("t=1799996400.001", NOW - 3599.999),
        ("t=1800000000.000", NOW),
        ("t=1800000004.900", NOW),  # of a clock that is a little ahead
    ],
)
def test_all_forms_that_proxies_send_are_read(sent: str, came: float) -> None:
    assert arrivals.of(sent, NOW) == pytest.approx(came, abs=1e-6)


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "t=",
        "yesterday",
        "t=1800000005.100",  # of a clock that is far ahead
        "t=1799996399.000",  # older than an hour
        "t=0.000",
        "t=-1799999999.250",
        "t=1799999999",  # whole seconds: the figure could be wrong by one
        "t=1799999999.",
        "t=179999999925",  # 12 digits have no unit
        "t=17999999992500",
        "t=1799999999250.5",
        "t=1.799999999e9",
        "t=1799999999,250",
        "t=1799999999.250, t=1799999999.300",  # two proxies; which one is meant is not known
        "T=1799999999.250",
        "t=１７９９９９９９９９.250",
        "t=1799999999.250\n",
        "t=nan",
        "inf",
        "t=" + "9" * 5000,
    ],
)
def test_what_is_not_understood_is_no_time(sent: str) -> None:
    assert arrivals.of(sent, NOW) is None


def test_whole_seconds_end_no_request_early() -> None:
    row = Row({"body": b"x"}, {"x-timeout-ms": "900", "x-request-start": "t=1799999999"})
    assert deadlines.of(row, NOW) == pytest.approx(NOW + 0.9)


def read(context_for: Callable[..., Any], *headers: dict[str, str]) -> list[Request]:
    reader = Reader(Interface("a text", lambda media_type: True, 9))
    sent = [{"content-length": "1", "url_path": "", **one} for one in headers]
    return reader.read([{"body": b"x"} for _ in sent], context_for(sent))


def test_a_request_knows_when_it_came_also_if_it_is_refused(context_for: Callable[..., Any]) -> None:
    began = time.time()
    start = {"X-Request-Start": f"t={began - 2:.3f}"}
    good, odd, late, bad = read(
        context_for,
        start,
        {"X-Request-Start": "soon"},
        {**start, "X-Timeout-Ms": "1500"},
        {**start, "X-Timeout-Ms": "soon"},
    )
    assert good.error is odd.error is None
    assert good.arrived == late.arrived == bad.arrived == pytest.approx(began - 2, abs=2e-3)
    assert odd.arrived is None
    assert isinstance(late.error, DeadlinePassed)
    assert bad.error is not None
    assert bad.error.status == 400


class Cache:
    """Keeps the counters of a host, by name and bucket."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metric(self, name: str, kind: str) -> Any:
        cache = self

        class Counter:
            def add_or_update(self, value: float, labels: list[str]) -> None:
                key = " ".join([name, *labels[3:]])
                cache.values[key] = cache.values.get(key, 0) + value

        return Counter() if name.startswith("QueueTime") else None


@pytest.fixture
def metrics(context_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[BatchMetrics, Cache]:
    monkeypatch.setattr(BatchMetrics, "_report_for_ever", lambda made: None)
    context = context_for()
    context.manifest = {"model": {"modelVersion": "2.0"}}
    context.metrics = Cache()
    made = BatchMetrics(context)
    made.start()
    return made, context.metrics


def served(arrived: float | None, **more: Any) -> Request:
    return Request(adapters.DEFAULT, ["a"], answers=[1], arrived=arrived, **more)


def test_each_request_that_says_when_it_came_counts_once(metrics: tuple[BatchMetrics, Cache]) -> None:
    made, cache = metrics
    assert cache.values["QueueTime_count"] == 0
    steps = Steps()
    began = steps.began_ns / 1e9
    made.report(
        [
            served(began - 0.040),
            served(None),
            served(began + 0.010),  # read after the batch began, by a clock that is ahead
            served(began - 3, error=DeadlinePassed("late")),
            Request(adapters.DEFAULT, arrived=began - 1, combine=lambda answers: {"engine": "its description"}),
        ],
        3,
        steps,
    )
    made.flush()
    buckets = {bound: cache.values[f"QueueTime_bucket {bound}"] for bound in ("0.5", "25", "50", "5000", "+Inf")}
    assert buckets == {"0.5": 1, "25": 1, "50": 2, "5000": 3, "+Inf": 3}
    assert cache.values["QueueTime_count"] == 3
    assert cache.values["QueueTime_sum"] == pytest.approx(3040, abs=1)


def test_the_histogram_is_declared() -> None:
    declared = yaml.safe_load((ROOT / "handlers" / "metrics.yaml").read_text(encoding="utf-8"))["model_metrics"]
    names = {item["name"] for item in declared["counter"]}
    assert {f"{name}{suffix}" for name in HISTOGRAMS for suffix in ("_bucket", "_sum", "_count")} <= names


def start_of(request: HttpRequest) -> str:
    return str(rows.row_of(request)[1].get("x-request-start", ""))


def test_a_host_says_when_a_request_came_unless_a_proxy_has_said_so() -> None:
    assert start_of(HttpRequest()) == ""
    assert start_of(HttpRequest(arrived=NOW)) == "t=1800000000.000000"
    proxied = {"X-Request-Start": "t=1799999999.250"}
    assert start_of(HttpRequest(headers=proxied, arrived=NOW)) == "t=1799999999.250000"
    for odd in ("soon", "t=1800000003.000", "t=1800009999.250", "t=1700000000.000"):
        assert start_of(HttpRequest(headers={"X-Request-Start": odd}, arrived=NOW)) == "t=1800000000.000000"


class Kept:
    """A model that keeps its calls."""

    name, batch_size, max_delay_s = "kept", 8, 0.0

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def run(self, calls: list[Any]) -> list[Any]:
        self.calls += calls
        return [HttpResponse(200) for _ in calls]

    def close(self) -> None:
        pass


def test_the_time_counts_from_the_call_or_as_the_host_says() -> None:
    async def ask() -> list[Any]:
        async with AsyncModel(cast("Model", Kept())) as model:
            await model.answer(HttpRequest())
            await model.answer(HttpRequest(arrived=NOW))
            return cast("Kept", model.model).calls

    began = time.time()
    first, second = asyncio.run(ask())
    assert began <= first.arrived <= time.time()
    assert second.arrived == NOW
