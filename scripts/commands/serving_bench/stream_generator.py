"""The project's own load generator: several processes of stream_client.py, in a closed or an open loop."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from serving_bench.generator import Endpoint, GeneratorError, Load, LoadResult, message_of

CLIENT = Path(__file__).with_name("stream_client.py")
START_S = 0.2  # between the last process's "ready" and the first request
CONNECT_TIMEOUT_S = 60
TIMEOUT_S = 30  # for the last answers of an open loop
QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9, "max": 100}


@dataclass(frozen=True)
class StreamGenerator:
    """A generator of `processes` processes, each an asyncio loop (stream_client.py)."""

    processes: int

    @property
    def name(self) -> str:
        """Its name and size, for reports."""
        return f"streams ({self.processes} process{'es' if self.processes > 1 else ''})"

    def closed(self, endpoint: Endpoint, load: Load, clients: int, seconds: float) -> LoadResult:
        """Keep `clients` requests open for `seconds`. Raises GeneratorError."""
        count = min(self.processes, clients)
        shares = [clients // count + (index < clients % count) for index in range(count)]
        firsts = accumulate(shares, initial=0)
        jobs = [
            {"connections": share, "rate": 0, "first": first} for share, first in zip(shares, firsts, strict=False)
        ]
        return self._run(endpoint, load, jobs, seconds)

    def open(self, endpoint: Endpoint, load: Load, rate: float, connections: int, seconds: float) -> LoadResult:
        """Send `rate` requests/s at random moments, on at most `connections`. Raises GeneratorError.

        Latencies count from the moment at which a request was due, so that a server that stalls can't hide it.
        """
        count = min(self.processes, connections)
        share = {"connections": max(1, connections // count), "rate": rate / count}
        return self._run(endpoint, load, [{**share, "first": index} for index in range(count)], seconds)

    def _run(self, endpoint: Endpoint, load: Load, shares: Sequence[dict[str, Any]], seconds: float) -> LoadResult:
        with tempfile.TemporaryDirectory(prefix="streams-") as name:
            folder = Path(name)
            common = {
                "servers": [{"url": one.url, "headers": {**one.headers, **load.headers}} for one in endpoint.each],
                "bodies": _write(folder, load.bodies),
                "seconds": seconds,
                "timeout_s": TIMEOUT_S,
            }
            jobs = []
            for index, share in enumerate(shares):
                jobs.append(folder / f"job-{index}.json")
                jobs[-1].write_text(
                    json.dumps({**common, **share, "index": index, "out": str(folder / f"out-{index}.json")})
                )
            with _started(jobs) as clients:
                _begin(clients)
                _wait(clients, seconds + TIMEOUT_S + CONNECT_TIMEOUT_S)
            found = [json.loads((folder / f"out-{index}.json").read_text()) for index in range(len(shares))]
        return _merged(self.name, found, seconds)


def _write(folder: Path, bodies: Sequence[bytes]) -> list[str]:
    files = [folder / f"body-{index}" for index in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_bytes(body)
    return list(map(str, files))


@contextlib.contextmanager
def _started(jobs: Sequence[Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """One process per job. All have ended when the `with` block ends."""
    clients: list[subprocess.Popen[str]] = []
    try:
        for job in jobs:
            command = [sys.executable, "-I", str(CLIENT), str(job)]
            pipe = subprocess.PIPE
            clients.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        yield clients
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
            client.communicate()


def _begin(clients: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until all are ready, and have them begin at the same moment."""
    for client in clients:
        assert client.stdout is not None  # noqa: S101 - made with pipes
        if client.stdout.readline().strip() != "ready":
            raise GeneratorError(_failure(client))
    begin = time.monotonic() + START_S
    for client in clients:
        assert client.stdin is not None  # noqa: S101
        client.stdin.write(f"{begin}\n")
        client.stdin.flush()


def _wait(clients: Sequence[subprocess.Popen[str]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for client in clients:
        try:
            client.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise GeneratorError(f"the load generator did not end within {timeout_s:.0f} s") from None
        if client.returncode:
            raise GeneratorError(_failure(client))


def _failure(client: subprocess.Popen[str]) -> str:
    client.kill()
    lines = (client.stderr.read() if client.stderr is not None else "").strip().splitlines()
    return f"the load generator failed: {lines[-1] if lines else 'it gave no reason'}"


def _merged(name: str, found: Sequence[dict[str, Any]], seconds: float) -> LoadResult:
    statuses: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for part in found:
        statuses.update(part["statuses"])
        failures.update(part["failures"])
    latencies = [value for part in found for value in part["latencies_us"]]
    late = [value for part in found for value in part["late_us"]]
    cpu_seconds = sum(part["cpu_seconds"] for part in found)
    quantiles = (_quantiles(latencies), cpu_seconds, _quantiles(late))
    messages = {status: message_of(body.encode()) for part in found for status, body in part["bodies"].items()}
    return LoadResult(name, seconds, statuses, failures, *quantiles, len(found), messages)


def _quantiles(values_us: Sequence[int]) -> dict[str, float]:
    """Quantiles and mean in milliseconds; {} without values."""
    if not values_us:
        return {}
    values = np.asarray(values_us) / 1e3
    quantiles = {key: float(np.percentile(values, at)) for key, at in QUANTILES.items()}
    return {**quantiles, "mean": float(values.mean())}
