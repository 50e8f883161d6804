"""Simulate fleets of TorchServe hosts, and fill the tables of docs/scale.md.

    .venv/bin/python scripts/research/scale_page.py               writes the tables into the page
    .venv/bin/python scripts/research/scale_page.py --check       exit status 1 if a table is not up to date
    .venv/bin/python scripts/research/scale_page.py --simulate    first runs the fleets again, for about ten minutes
    .venv/bin/python scripts/research/scale_page.py --gpus-per-host 4    prints the plan for such hosts, and ends

The tables come from the runs of scripts/bench_serving in docs/benchmarks, and from docs/benchmarks/scaling.json.
--simulate writes that file. The same code gives the same file: all random numbers are seeded.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks_page import FOLDER, ROOT, SERVING_H200, Row, Table, filled, line, read
from scaling.calibration import calibrated, compared
from scaling.fleet import Fleet, simulate
from scaling.sizing import cost, planned

PAGE = ROOT / "docs" / "scale.md"
RESULTS = FOLDER / "scaling.json"
CALIBRATED = {"one JPEG": "serving-resnet101-jpeg-h200", "one text": "serving-bert-large-one-text-h200"}
RATES = (10_000, 100_000, 1_000_000)
GPUS_PER_HOST = 8  # an assumption: what hosts with many GPUs mostly have
DOLLARS_PER_GPU_HOUR = 3.0  # an assumption, to turn GPUs into money
SIZE = re.compile(r"\((\d+(?:\.\d+)?) (KB|MB)\)")


class Scenario(NamedTuple):
    """One simulated fleet. `share` is the load as a share of what the hosts were measured to do together."""

    hosts: int
    share: float
    balancer: str
    failures: int
    unnoticed: float
    retries: int


BALANCED = tuple(
    Scenario(hosts, share, balancer, 0, 0.0, 0)
    for hosts, balancers in ((1, ("random",)), (10, ("random", "less busy of two")), (100, ("less busy of two",)))
    for balancer in balancers
    for share in (0.5, 0.7, 0.85, 0.95)
)
BROKEN = tuple(
    Scenario(10, 0.7, balancer, 1, unnoticed, retries)
    for balancer in ("random", "less busy of two")
    for unnoticed in (5.0, 0.5, 0.01)
    for retries in (0, 1)
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate if asked to, then write the tables, or compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a table is old")
    parser.add_argument("--simulate", action="store_true", help="run the fleets again, for about ten minutes")
    parser.add_argument(
        "--gpus-per-host",
        type=int,
        choices=range(1, 129),
        metavar="N",
        help=f"print the plan for hosts with N GPUs, and write nothing; the page has it for {GPUS_PER_HOST}",
    )
    options = parser.parse_args(arguments)
    if options.gpus_per_host:
        print("\n".join(plan(options.gpus_per_host)))
        return 0
    if options.simulate:
        RESULTS.write_text(json.dumps(simulated(), indent=1) + "\n", encoding="utf-8")
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old, TABLES)
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{PAGE.relative_to(ROOT)}: tables are old; {Path(__file__).relative_to(ROOT)} writes", file=sys.stderr)
        return 1
    return 0


def simulated() -> dict[str, Any]:
    """Compare the simulated host with the measured one, and run all fleets; prints a line per fleet."""
    found: dict[str, Any] = {"hosts": {}, "points": [], "fleets": []}
    for name, run in CALIBRATED.items():
        host = calibrated(read(run))
        found["hosts"][name] = {"run": run, "costs": asdict(host.costs), "setup": asdict(host.setup)}
        for point in compared(read(run), host):
            simulated = {key: round(value, 3) for key, value in point.simulated.items()}
            place = {key: point.row[key] for key in ("workers", "clients", "requests_per_s", "p50_ms", "p99_ms")}
            found["points"].append({"host": name, **place, "fitted": point.was_calibration, "simulated": simulated})
    images = read(CALIBRATED["one JPEG"])
    host, most = calibrated(images), max(row["requests_per_s"] for row in images["rows"] if row["kind"] != "no-op")
    for scenario in (*BALANCED, *BROKEN):
        fleet = Fleet(
            host.costs,
            host.setup,
            scenario.hosts,
            most * scenario.hosts * scenario.share,
            scenario.balancer,
            scenario.failures,
            scenario.unnoticed,
            retries=scenario.retries,
        )
        seconds = 1.0 if scenario.hosts == 100 else 10.0 if scenario.failures else 3.0
        outcome = simulate(fleet, seconds)
        found["fleets"].append({**scenario._asdict(), "seconds": seconds, **asdict(outcome)})
        print(json.dumps(found["fleets"][-1]), flush=True)
    return found


def comparison() -> list[str]:
    """Each measured point beside the simulated one."""
    lines = [
        line(
            (
                "one request",
                "workers",
                "clients",
                "requests/s",
                "simulated",
                "p50 ms",
                "simulated",
                "p99 ms",
                "simulated",
            )
        ),
        line(("---", *["---:"] * 8)),
    ]
    for point in _results()["points"]:
        mark = " (fitted)" if point["fitted"] else ""
        simulated = point["simulated"]
        error = simulated["requests_per_s"] / point["requests_per_s"] - 1
        lines.append(
            line(
                (
                    *(point["host"] + mark, point["workers"], point["clients"]),
                    *(f"{point['requests_per_s']:,.0f}", f"{simulated['requests_per_s']:,.0f} ({error:+.0%})"),
                    *(f"{values[name]:.0f}" for name in ("p50_ms", "p99_ms") for values in (point, simulated)),
                )
            )
        )
    return lines


def measured() -> list[str]:
    """What a request costs on the fastest point of each load; the memory is that of the newest run of the model."""
    head = (
        "model",
        "one request",
        "items/s a GPU",
        "CPU ms a request",
        "of that TorchServe's Java",
        "KB in",
        "KB out",
    )
    lines = [line((*head, "GPU MiB a worker", "workers")), line(("---", "---", *["---:"] * 7))]
    for row in _fastest():
        cores = row["cores"]
        java = 1e3 * cores["java"] / row["requests_per_s"]
        lines.append(
            line(
                (
                    *(row["target"], row["load"], f"{row['items_per_s']:,.0f}"),
                    *(f"{java + 1e3 * cores['workers'] / row['requests_per_s']:.2f}", f"{java:.2f}"),
                    *(f"{_bytes_in(row) / 1e3:,.1f}", f"{row['answer_bytes'] / 1e3:,.1f}"),
                    *(f"{_memory(row['target']):,}", row["workers"]),
                )
            )
        )
    return lines


def plan(gpus_per_host: int = GPUS_PER_HOST) -> list[str]:
    """How many GPUs, hosts and front ends each rate takes, what passes through the network, and what is full next."""
    head = ("one request", "requests/s", "GPUs", "hosts", "front ends", "Gbit/s in, out", "next limit", "$ an hour")
    lines = [line(head), line(("---", *["---:"] * 5, "---", "---:"))]
    for row in _fastest():
        one = cost(row, _front_end(row["load"]), _bytes_in(row))
        for rate in RATES:
            needed = planned(one, rate, gpus_per_host)
            gigabits = (8e-9 * rate * size for size in (one.bytes_in, one.bytes_out))
            lines.append(
                line(
                    (
                        *(row["load"], f"{rate:,}", f"{needed.gpus:,}"),
                        f"{needed.hosts:,} + {needed.spare:,} of {needed.gpus_per_host}",
                        f"{needed.front_ends:,}",
                        ", ".join(f"{value:,.1f}" for value in gigabits),
                        f"{needed.next_limit}, {needed.used[needed.next_limit]:.0%} used",
                        f"{needed.all_gpus * DOLLARS_PER_GPU_HOUR:,.0f}",
                    )
                )
            )
    return lines


def balanced() -> list[str]:
    """Simulated latencies by the number of hosts, the balancer and the load."""
    lines = [
        line(("hosts", "balancer", "load", "requests/s", "p50 ms", "p99 ms", "p99.9 ms")),
        line(("---:", "---", *["---:"] * 5)),
    ]
    for fleet in _fleets(failures=0):
        share = f"{fleet['share']:.0%}"
        times = (f"{fleet[name]:.0f}" for name in ("p50_ms", "p99_ms", "p999_ms"))
        balancer = "-" if fleet["hosts"] == 1 else fleet["balancer"]
        lines.append(line((fleet["hosts"], balancer, share, f"{fleet['requests_per_s']:,.0f}", *times)))
    return lines


def broken() -> list[str]:
    """What clients lose when one of ten hosts dies."""
    lines = [
        line(("balancer", "notices after", "retries", "lost", "of requests", "p99 ms")),
        line(("---", *["---:"] * 5)),
    ]
    for fleet in _fleets(failures=1):
        lost = (f"{fleet['lost']:,}", f"{fleet['requests']:,}")
        lines.append(
            line((fleet["balancer"], f"{fleet['unnoticed']:g} s", fleet["retries"], *lost, f"{fleet['p99_ms']:.0f}"))
        )
    return lines


TABLES: dict[str, Table] = {
    "comparison": comparison,
    "measured": measured,
    "plan": plan,
    "balanced": balanced,
    "broken": broken,
}


@functools.cache
def _results() -> Mapping[str, Any]:
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def _fleets(failures: int) -> list[Row]:
    return [fleet for fleet in _results()["fleets"] if fleet["failures"] == failures]


def _fastest() -> list[Row]:
    """The fastest row of each load."""
    rows: dict[str, Row] = {}
    for run in SERVING_H200:
        for row in read(run)["rows"]:
            if row["kind"] != "no-op" and row["items_per_s"] > rows.get(row["load"], {}).get("items_per_s", 0):
                rows[row["load"]] = row
    return list(rows.values())


def _front_end(load: str) -> float:
    """Requests/s of a handler that does nothing, with the bytes of this load: the most that was measured."""
    rows = (row for run in SERVING_H200 for row in read(run)["rows"])
    return max(float(row["requests_per_s"]) for row in rows if (row["kind"], row["load"]) == ("no-op", load))


def _memory(model: str) -> int:
    """MiB of GPU memory per worker in the model's newest run on an H200, with one GPU if it had several."""
    runs = [read(file.stem) for file in FOLDER.glob("serving-*-h200.json")]
    found: list[tuple[str, int, int]] = [
        (run["conditions"]["date"], -(row.get("gpus") or 1), row["gpu_mib_per_worker"])
        for run in runs
        for row in run["rows"]
        if row["target"] == model and row.get("gpu_mib_per_worker")
    ]
    newest, gpus, _ = max(found)
    return max(memory for date, count, memory in found if (date, count) == (newest, gpus))


def _bytes_in(row: Row) -> float:
    """The mean size of a request: as the load's name says it, or of the texts that the bench sends."""
    said = SIZE.search(row["load"])
    if said:
        return float(said[1]) * {"KB": 1e3, "MB": 1e6}[said[2]]
    lines = (ROOT / "archive" / "samples" / "texts.txt").read_bytes().splitlines()
    mean = sum(map(len, lines)) / len(lines)
    if row["load"].startswith("one text"):
        return mean
    return int(row["load"].split()[0]) * (mean + 4)  # quotes, comma and blank of a JSON list


if __name__ == "__main__":
    sys.exit(main())
