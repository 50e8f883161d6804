"""A request may say how long its answer is wanted; after that nothing is computed for it."""

from __future__ import annotations

import pytest

from handlers.protocol import deadlines
from handlers.protocol.errors import InvalidOption
from handlers.protocol.request import Request
from handlers.protocol.row import Row
from handlers.serving.inputs import Inputs
from tests.pages import ROOT

NOW = 1_800_000_000.0


def row(**headers: str) -> Row:
    return Row({"body": b"x"}, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("start", "begin"),
    [
        ("", NOW),
        ("t=1799999999.250", NOW - 0.75),
        ("1799999999.250", NOW - 0.75),
        ("t=1799999999250", NOW - 0.75),
        ("t=1799999999250000", NOW - 0.75),
        ("t=1800000001.000", NOW),  # of a clock that is ahead
        ("t=1700000000.000", NOW),  # of no clock at all
        ("yesterday", NOW),
    ],
)
def test_the_time_counts_from_the_proxy(start: str, begin: float) -> None:
    deadline = deadlines.of(row(x_timeout_ms="1500", x_request_start=start), NOW)
    assert deadline == pytest.approx(begin + 1.5, abs=1e-3)


def test_without_a_timeout_there_is_no_deadline() -> None:
    assert deadlines.of(row(x_request_start="t=1799999999.250"), NOW) is None
    assert deadlines.refusal(None) is None


def test_the_shorter_of_two_counts() -> None:
    both = row(x_timeout_ms="1500", x_envoy_expected_rq_timeout_ms="200")
    assert deadlines.of(both, NOW) == pytest.approx(NOW + 0.2)


def test_a_proxys_odd_value_is_no_fault_of_the_client() -> None:
    assert deadlines.of(row(x_envoy_expected_rq_timeout_ms="soon"), NOW) is None


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1s", "99999999999", "٣", "3600001"])
def test_what_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InvalidOption, match="x-timeout-ms: wanted: milliseconds"):
        deadlines.of(row(x_timeout_ms=value), NOW)


def test_a_late_request_gets_504() -> None:
    error = deadlines.refusal(NOW, NOW + 0.25)
    assert error is not None
    assert error.status == 504
    assert "over 250 ms before" in error.message
    assert deadlines.refusal(NOW, NOW) is None


def test_late_inputs_are_left_out_before_the_network_runs() -> None:
    late, early, any_time = (Request(None, deadline=deadline) for deadline in (1.0, 4e9, None))  # type: ignore[arg-type]
    left = Inputs(["a", "b", "c", "d"], [late, late, early, any_time]).in_time()
    assert left.values == ["c", "d"]
    assert late.error is not None
    assert (late.error.status, early.error, any_time.error) == (504, None, None)


def test_nginx_says_when_a_request_came() -> None:
    text = (ROOT / "scripts" / "deployment" / "nginx" / "locations.conf").read_text(encoding="utf-8")
    assert 'proxy_set_header X-Request-Start "t=${msec}";' in text
