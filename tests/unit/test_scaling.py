"""The simulated hosts: TorchServe's rules of batching, agreement with measured rows, and what failures cost."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
import scale_page
import simpy
from benchmarks_page import read
from scaling.calibration import Compared, calibrated, compared
from scaling.fleet import Fleet, Outcome, simulate
from scaling.host import Costs, Host, Setup, after, closed_loop
from scaling.sizing import Cost, Plan, cost, evenly, planned

COSTS = Costs(1e-5, 1e-3, 1e-4, 1e-3, 1e-4, 1.0, 1e-5, 1.2)
SETUP = Setup(workers=2, batch_size=4, max_batch_delay=0.01, queue_size=8, gpus=1, crowding=0.05)


@functools.cache
def points_of(run: str) -> list[Compared]:
    """The run's points beside their simulations."""
    return compared(read(run), calibrated(read(run)))


def served(moments: list[float], setup: Setup = SETUP) -> tuple[Host, list[tuple[float, bool]]]:
    """Offer a request at each moment; returns the host and when each ended, with True for an answer."""
    env, ended = simpy.Environment(), []
    host = Host(env, COSTS, setup, random.Random(0))

    def offer() -> None:
        host.offer(lambda answered: ended.append((env.now, answered)))

    for moment in moments:
        after(env, moment, offer)
    env.run(10)
    return host, ended


def test_lone_request_waits_for_the_delay() -> None:
    _, ended = served([1.0])
    assert [answered for _, answered in ended] == [True]
    assert 1.012 < ended[0][0] < 1.014


def test_full_batch_does_not_wait() -> None:
    host, ended = served([1.0] * 4)
    assert host.batches == 1
    assert max(moment for moment, _ in ended) < 1.004


def test_workers_of_a_host_share_the_work() -> None:
    host, _ = served([1.0] * 8)
    assert host.batches == 2


def test_full_queue_refuses_at_once_and_nothing_gets_lost() -> None:
    host, ended = served([1.0 + 1e-6 * number for number in range(40)])
    assert len(ended) == 40
    assert host.outstanding == 0
    assert host.refused == sum(not answered for _, answered in ended) > 0


def test_dead_host_loses_what_it_holds_and_serves_again() -> None:
    env = simpy.Environment()
    host = Host(env, COSTS, SETUP, random.Random(0))
    ended: list[bool] = []
    for moment in (1.0, 1.005, 2.0):
        after(env, moment, lambda: host.offer(ended.append))
    after(env, 1.001, host.fail)
    after(env, 1.5, host.repair)
    env.run(5)
    assert ended == [False, False, True]


def test_more_clients_than_one_batch_keep_one_worker_busy() -> None:
    alone = replace(SETUP, workers=1, crowding=0.0)
    found = closed_loop(COSTS, alone, 8, 2.0)
    assert found["mean_batch"] == pytest.approx(4, abs=0.1)
    assert found["requests_per_s"] == pytest.approx(4 / (2e-3 + 8e-4), rel=0.03)


@pytest.mark.parametrize("run", scale_page.CALIBRATED.values())
def test_simulation_is_within_15_percent_of_each_measured_point(run: str) -> None:
    points = points_of(run)
    assert sum(not point.was_calibration for point in points) >= 7
    assert max(abs(point.errors[0]) for point in points) <= 0.15


def test_run_without_one_worker_calibrates_nothing() -> None:
    with pytest.raises(ValueError, match="one worker"):
        calibrated(read("serving-bert-large-32-raw-h200"))


def fleet(**changes: object) -> Outcome:
    """Three hosts at half of their load."""
    base = Fleet(COSTS, SETUP, hosts=3, rate=3000.0, away=0.5)
    return simulate(replace(base, **changes), 1.0)  # type: ignore[arg-type]


def test_same_seed_gives_the_same_fleet() -> None:
    assert fleet() == fleet()
    assert fleet().lost == 0


def test_dead_host_that_nobody_notices_draws_requests() -> None:
    unnoticed = fleet(failures=1, unnoticed=0.4, retries=0)
    noticed = fleet(failures=1, unnoticed=0.01, retries=0)
    assert noticed.lost < unnoticed.lost
    assert fleet(failures=1, unnoticed=0.01, retries=1).lost <= noticed.lost


def test_fleet_keeps_a_host() -> None:
    with pytest.raises(ValueError, match="none is left"):
        fleet(failures=3)


def test_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_page.main(["--check"]) == 0, capsys.readouterr().err


def test_saved_comparison_is_what_the_code_computes() -> None:
    saved = [point for point in scale_page._results()["points"] if point["host"] == "one text"]
    now = points_of(scale_page.CALIBRATED["one text"])
    for old, new in zip(saved, now, strict=True):
        assert old["simulated"]["requests_per_s"] == pytest.approx(new.simulated["requests_per_s"], rel=0.02)


# One GPU answers 1,000 requests/s, half busy, with 8 of 16 cores; one TorchServe passes 3,000 on.
ONE = Cost(per_gpu=1000, per_front_end=3000, gpu_s=5e-4, core_s=8e-3, bytes_in=1000, bytes_out=100)


@pytest.mark.parametrize(
    ("rate", "gpus_per_host", "wanted"),
    [
        (700, 8, (1, 1, 1, 1, 1)),  # gpus, gpus_per_host, hosts, spare, front ends per host
        (4900, 8, (7, 1, 7, 1, 1)),
        (5600, 8, (8, 8, 1, 1, 4)),
        (5601, 8, (9, 8, 2, 1, 4)),
        (5601, 1, (9, 1, 9, 1, 1)),
        (700_000, 8, (1000, 8, 125, 7, 4)),
    ],
)
def test_hosts_of_a_rate(rate: float, gpus_per_host: int, wanted: tuple[int, ...]) -> None:
    plan = planned(ONE, rate, gpus_per_host)
    assert (plan.gpus, plan.gpus_per_host, plan.hosts, plan.spare, plan.front_ends_per_host) == wanted
    assert plan.all_gpus == plan.gpus_per_host * (plan.hosts + plan.spare)
    assert plan.front_ends == plan.front_ends_per_host * (plan.hosts + plan.spare)


@pytest.mark.parametrize(
    ("gpus", "least", "wanted"), [(8, 0.1, 1), (8, 2.7, 4), (8, 4.4, 8), (8, 9, 16), (1, 1.5, 2)]
)
def test_front_ends_share_the_gpus_of_a_host_evenly(gpus: int, least: float, wanted: int) -> None:
    assert evenly(gpus, least) == wanted


def test_shares_in_use_are_those_of_hosts_that_serve() -> None:
    plan = planned(ONE, 5600, 8)
    assert plan.used == pytest.approx({"GPUs": 0.35, "CPU cores": 0.35, "front ends": 5.6 / 12, "network": 4.48e-4})
    assert plan.next_limit == "front ends"


@pytest.mark.parametrize(
    ("change", "limit"),
    [({"gpu_s": 9e-4}, "GPUs"), ({"core_s": 15e-3}, "CPU cores"), ({"bytes_out": 2e6}, "network")],
)
def test_what_is_used_most_is_the_next_limit(change: dict[str, float], limit: str) -> None:
    assert planned(replace(ONE, **change), 5600, 8).next_limit == limit


def test_costs_are_those_of_the_measured_row() -> None:
    row = {"requests_per_s": 200, "cores": {"java": 1, "workers": 3}, "gpu_busy": [0.5], "answer_bytes": 7}
    assert cost(row, 300, 5) == Cost(200, 300, 0.0025, 0.02, 5, 7)


def test_no_host_of_the_page_is_planned_beyond_what_it_can_do() -> None:
    for row in scale_page._fastest():
        one = cost(row, scale_page._front_end(row["load"]), scale_page._bytes_in(row))
        for rate in scale_page.RATES:
            plan: Plan = planned(one, rate, scale_page.GPUS_PER_HOST)
            assert plan.hosts * plan.gpus_per_host * 0.7 * one.per_gpu >= rate
            assert plan.hosts * plan.front_ends_per_host * 0.7 * one.per_front_end >= rate * 0.999
            assert max(plan.used.values()) < 1


def test_plan_for_other_hosts_is_printed_and_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    before = scale_page.PAGE.read_bytes()
    assert scale_page.main(["--gpus-per-host", "4"]) == 0
    assert " of 4 |" in capsys.readouterr().out
    assert scale_page.PAGE.read_bytes() == before
