"""What a report says of one point, as a row, and as lines for a person."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from serving_bench.generator import Load, LoadResult
from serving_bench.prometheus import MetricChange
from serving_bench.reference_answers import AnswerChecker
from serving_bench.resource_usage import GpuMonitor, ProcessMonitor
from serving_bench.scaling import HEADROOM

Row = dict[str, Any]

QUEUE_FULL = "503"
MOST_LATE = 0.25  # share of the p99 by which an open loop may send late before the report mentions it
MOST_ELSEWHERE = 0.1  # share of the cores that other programs may take before the report mentions it


def of_load(result: LoadResult, load: Load) -> Row:
    """What the load generator saw."""
    quantiles = {f"{key}_ms": rounded(result.latency_ms.get(key)) for key in ("p50", "p90", "p99", "p999", "max")}
    return {
        "generator": result.generator,
        "seconds": rounded(result.seconds),
        "requests_per_s": rounded(result.requests_per_s),
        "items_per_s": rounded(result.requests_per_s * load.items),
        **quantiles,
        "errors": result.errors,
        "statuses": dict(result.statuses),
        "failures": dict(result.failures),
        "messages": dict(result.messages),
        "late_p99_ms": rounded(result.late_ms.get("p99")),
    }


def of_request_time(change: MetricChange, usage: ProcessMonitor, clients: int | None, result: LoadResult) -> Row:
    """Where a request's time goes: means in milliseconds, None for parts that the server does not report.

    TorchServe's latency starts when the request is read and ends when the answer is handed to the network. Its first
    part is the queue, until a batch is complete. The handler's time is that of the mean batch.
    """
    mean = result.latency_ms.get("mean")
    if clients and result.requests_per_s:
        mean = clients / result.requests_per_s * 1e3  # Little's law: each client always has one request open
    inside = change.per_request_ms("ts_inference_latency_microseconds")
    queue = change.per_request_ms("ts_queue_latency_microseconds")
    handler = change.mean("BatchTime")
    if handler is None and usage.polled:
        handler = sum(usage.polled) / len(usage.polled)  # a gauge of the last batch, read each second
    rest = inside - queue - handler if None not in (inside, queue, handler) else None  # type: ignore[operator]
    return {
        "mean_ms": rounded(mean),
        "mean_batch": rounded(change.mean("BatchSize")),
        "mean_batch_items": rounded(change.mean("BatchInputs")),
        "outside_ms": rounded(max(0.0, mean - inside)) if mean is not None and inside is not None else None,
        "queue_ms": rounded(queue),
        "handler_ms": rounded(handler),
        "exchange_ms": rounded(max(0.0, rest)) if rest is not None else None,
    }


def of_resources(usage: ProcessMonitor, result: LoadResult, gpus: GpuMonitor) -> Row:
    """CPU, memory and GPU during the point."""
    cores = usage.cores()
    cores["generator"] = result.cpu_seconds / (usage.end - usage.start)
    machine = cores.pop("machine")
    cores["elsewhere"] = max(0.0, machine - sum(cores.values()))
    of_gpus = gpus.between(usage.start, usage.end)
    busy = [busy for busy, _ in of_gpus.values()]
    several = len(busy) > 1
    return {
        "cores": {group: rounded(value) for group, value in cores.items()},
        "rss_mib": {group: rounded(value) for group, value in usage.rss_mib.items()},
        "gpu_busy": [rounded(value) for value in busy],
        "gpu_busy_mean": rounded(sum(busy) / len(busy)) if several else None,
        "gpu_busy_least": rounded(min(busy)) if several else None,
        "gpu_memory_mib": [rounded(memory) for _, memory in of_gpus.values()],
    }


def of_answers(checked: AnswerChecker | None) -> Row:
    """How many answers were right and wrong; None if they were not checked."""
    if checked is None:
        return {"answers_right": None, "answers_wrong": None, "wrong": None}
    return {
        "answers_right": checked.right,
        "answers_wrong": len(checked.wrong),
        "wrong": checked.wrong[0] if checked.wrong else None,
    }


def disturbed(row: Mapping[str, Any]) -> bool:
    """Whether other programs took more than MOST_ELSEWHERE of the machine's cores."""
    known = "java" in row["cores"] or "server" in row["cores"]
    return known and (row["cores"].get("elsewhere") or 0) > MOST_ELSEWHERE * (os.cpu_count() or 1)


def line_of(row: Mapping[str, Any]) -> str:
    """A row as one line for a terminal."""
    loop = f"{row['clients']} clients" if row["clients"] else f"at {row['rate']:,.0f} requests/s"
    workers = f" {row['workers']} worker{'s' if row['workers'] > 1 else ''}" if row["workers"] else ""
    batch = f", batches of {row['mean_batch']:.1f}" if row["mean_batch"] else ""
    rates = f"{row['requests_per_s']:,.0f} requests/s"
    if row["items_per_s"] != row["requests_per_s"]:
        rates += f", {row['items_per_s']:,.0f} {row['unit']}/s"
    cores = " + ".join(f"{group} {value:.1f}" for group, value in row["cores"].items() if value >= 0.05)
    gpus = f", GPU {'/'.join(f'{busy:.0%}' for busy in row['gpu_busy'])}" if row["gpu_busy"] else ""
    share = f", {row['share_of_linear']:.0%} of linear" if row.get("share_of_linear") else ""
    layout = f" ({words})" if (words := layout_words(row)) else ""
    return (
        f"{row['target']}{workers}{layout}, {loop}: {rates}{share}; p50 {_ms(row['p50_ms'])}, "
        f"p99 {_ms(row['p99_ms'])} ms"
        f"{batch}; cores: {cores}{gpus}{_troubles(row)}"
    )


def layout_words(row: Mapping[str, Any]) -> str:
    """ "4 GPUs, 4 servers, MPS on"; "" if none of it was asked for."""
    found = []
    for key, word in (("gpus", "GPU"), ("servers", "server")):
        if count := row.get(key):
            found.append(f"{count} {word}{'s' if count > 1 else ''}")
    return ", ".join([*found, *([f"MPS {row['mps']}"] if row.get("mps") else [])])


def troubles(row: Mapping[str, Any]) -> list[str]:
    """Reasons not to trust a row, in words."""
    found = []
    if row["errors"]:
        found.append(f"{row['errors']:,} ERRORS ({', '.join(f'{kind}: {n:,}' for kind, n in kinds_of(row).items())})")
        if QUEUE_FULL in kinds_of(row):
            found[-1] += ", its queue was full: fewer clients, or --setting job_queue_size=N"
    if row.get("answers_wrong"):
        found.append(
            f"{row['answers_wrong']} WRONG ANSWERS beside {row['answers_right']} right ones: it {row['wrong']}"
        )
    found += disagreements(row)
    if (headroom := row.get("headroom")) is not None and headroom < HEADROOM:
        found.append(f"the no-op is only {headroom:.2f} times as fast: the front end or the generator limits")
    if is_late(row):
        found.append(
            f"requests were sent {row['late_p99_ms']:.1f} ms late (p99), which is part of the latencies: a lower "
            f"--rate, more --generator-threads, or a generator on another machine"
        )
    if spread := row.get("workers_per_gpu"):
        counts = set(spread.split(","))
        found += [f"the workers are spread unevenly over the GPUs: {spread}"] if len(counts) > 1 else []
    return found


def unsound(row: Mapping[str, Any]) -> str:
    """What was wrong with the answers of a point, in words; "" if all were right."""
    found = [errors_of(row)] if row["errors"] else []
    if row["answers_wrong"]:
        found.append(f"{row['answers_wrong']:,} wrong answers")
    return "; ".join(found) or ("" if row["p99_ms"] is not None else "no answer came")


def errors_of(row: Mapping[str, Any]) -> str:
    """How many errors a point had, and which, with the server's own words."""
    kinds = []
    for kind, count in kinds_of(row).items():
        words = row["messages"].get(kind, "")
        said = "no room in the queue" if is_queue_full(kind, words) else words
        kinds.append(f"{count:,} x {kind}{f' ({said})' if said else ''}")
    return f"{row['errors']:,} error{'s' if row['errors'] > 1 else ''}: {', '.join(kinds)}"


def is_queue_full(status: str, words: str) -> bool:
    """Whether an answer says that TorchServe's queue was full. It says the same if there is no worker at all."""
    return status == QUEUE_FULL and (not words or "no worker to serve" in words)


def kinds_of(row: Mapping[str, Any]) -> dict[str, int]:
    """How many errors a row has, by status, or by what kept an answer from coming."""
    refused = {status: count for status, count in row["statuses"].items() if not status.startswith("2")}
    return {**refused, **row["failures"]}


def is_late(row: Mapping[str, Any]) -> bool:
    """Whether an open loop sent its requests so late that the latencies are higher than the server's."""
    late = row.get("late_p99_ms")
    return late is not None and bool(late > MOST_LATE * (row["p99_ms"] or 0))


def disagreements(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with the answers of a host that serves the same archive, compared with TorchServe's."""
    if not row.get("same_archive"):
        return []
    if row["agrees"] is None:
        return ["its answers could not be compared with TorchServe's"]
    same, _, all_of_them = row["agrees"].partition(" of ")
    return [] if same == all_of_them else [f"only {row['agrees']} answers are TorchServe's"]


def _troubles(row: Mapping[str, Any]) -> str:
    return "".join(f"; {trouble}" for trouble in troubles(row))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def rounded(value: float | None) -> float | None:
    """To five significant digits."""
    return None if value is None else float(f"{value:.5g}")
