"""The same requests by HTTP and by gRPC, under Ray Serve and under TorchServe, in one run.

Run it on a machine with nothing else to do, with an interpreter that has Ray, grpcio, TorchServe and this project:

    export PYTHONPATH=.:scripts/commands
    python scripts/research/ray_ingress.py model_store/sentences.mar --out ray-ingress.json

Both clients are one process with an event loop: HTTP by serving_bench/stream_client.py, gRPC by grpc.aio, whose
calls take more CPU time. "client_cpu_s" says how much, for the clients share this machine's cores with the servers.
gRPC sends the body as the entry "data" of Predictions. Rounds alternate between HTTP and gRPC, and the median counts.

Exit status: 0; 1 if a request was not answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from ray_host import grpc_service
from server.paths import ROOT, python_path
from server.ports import free_ports
from serving_bench import archives, loads
from serving_bench.archives import TEXTS, Archive
from serving_bench.generator import Endpoint, Load
from serving_bench.stream_generator import StreamGenerator
from serving_bench.temporary_server import TemporaryServer

METHOD = f"/{grpc_service.SERVICE}/{grpc_service.METHOD}"
CHANNELS = 4
MODEL = "model"


@dataclass(frozen=True)
class Served:
    """A server: where it answers by HTTP, its gRPC address, its name for a model, and the metadata of a call.

    haproxy: whether HAProxy reads its HTTP requests.
    """

    name: str
    http: Endpoint
    grpc: str
    model: str
    metadata: tuple[tuple[str, str], ...] = ()
    haproxy: bool = False


@contextlib.contextmanager
def ray(archive: Archive, chosen: argparse.Namespace) -> Iterator[Served]:
    """Ray Serve with as many replicas as TorchServe has workers."""
    from ray_host import local, tunables

    os.environ["PYTHONPATH"] = python_path()
    port, grpc_port = free_ports(2)
    model = {
        "archive": str(archive.file.resolve()),
        "name": MODEL,
        "replicas": chosen.workers,
        "num_gpus": chosen.gpu_share,
        "edited_settings": True,
        "allow_other_version": True,
    }
    try:
        logs = local.start(local.HERE, port, chosen.workers, grpc_port)
        local.run({"models": [model], "front_num_cpus": 0, "fronts": chosen.fronts}, logs)
        url = f"http://{local.HERE}:{port}/predictions/{MODEL}"
        # Only now: what starts Ray decides it, unless the environment does.
        haproxy = tunables.is_haproxy(os.environ)
        yield Served("Ray", Endpoint(url, {}), f"{local.HERE}:{grpc_port}", MODEL, haproxy=haproxy)
    finally:
        local.stop()


@contextlib.contextmanager
def torchserve(archive: Archive, chosen: argparse.Namespace) -> Iterator[Served]:
    """A TorchServe of this program's own."""
    with TemporaryServer({}) as server:
        server.register(archive, None, None)
        server.scale(archive.name, chosen.workers)
        config = server.client.config
        token = (("authorization", f"Bearer {server.client.token('inference')}"),)
        address = f"{config['grpc_inference_address']}:{config['grpc_inference_port']}"
        yield Served("TorchServe", server.endpoint(archive.name), address, archive.name, token)


def by_http(served: Served, load: Load, clients: int, seconds: float) -> dict[str, Any]:
    """Keep `clients` HTTP requests open for `seconds`."""
    found = StreamGenerator(1).closed(served.http, load, clients, seconds)
    statuses = {"OK" if status == "200" else status: count for status, count in found.statuses.items()}
    return _figures({**statuses, **found.failures}, found.seconds, found.latency_ms, found.cpu_seconds)


def by_grpc(served: Served, load: Load, clients: int, seconds: float) -> dict[str, Any]:
    """Keep `clients` gRPC calls open for `seconds`."""
    request = grpc_service.message("PredictionsRequest")
    sent = [request(model_name=served.model, input={"data": body}).SerializeToString() for body in load.bodies]
    cpu = time.process_time()
    statuses, took_s = asyncio.run(_call(served, sent, clients, seconds))
    cpu = time.process_time() - cpu
    quantiles = statistics.quantiles(took_s, n=100) if len(took_s) > 1 else [0.0] * 99
    return _figures(statuses, seconds, {"p50": quantiles[49] * 1e3, "p99": quantiles[98] * 1e3}, cpu)


async def _call(
    served: Served, sent: Sequence[bytes], clients: int, seconds: float
) -> tuple[Counter[str], list[float]]:
    """Statuses and times of all calls that ended within `seconds`."""
    import grpc

    statuses: Counter[str] = Counter()
    took_s: list[float] = []
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.aio.insecure_channel(served.grpc, options) for _ in range(min(CHANNELS, clients))]
    calls = [channel.unary_unary(METHOD) for channel in channels]
    for channel in channels:
        await channel.channel_ready()
    ends = time.monotonic() + seconds

    async def client(number: int) -> None:
        while (started := time.monotonic()) < ends:
            number += 1
            try:
                answer = await calls[number % len(calls)](sent[number % len(sent)], metadata=served.metadata)
                status = _status(answer)
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            if (now := time.monotonic()) <= ends:
                statuses[status] += 1
                took_s.append(now - started)

    await asyncio.gather(*map(client, range(clients)))
    for channel in channels:
        await channel.close()
    return statuses, took_s


def _status(answer: bytes) -> str:
    """OK, or "refused": TorchServe sends errors with status OK."""
    body = grpc_service.message("PredictionResponse").FromString(answer).prediction
    return "refused" if body.startswith(b'{"code"') or not body else "OK"


def servers_cpu_s() -> dict[str, float]:
    """Return the CPU seconds of all processes that this one has started, by what they are, up to now."""
    found: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[_kind(" ".join(process.cmdline()))] += times.user + times.system
    return found


def _kind(command: str) -> str:
    """What a process is: Ray's workers name themselves, the others are known by their files."""
    if found := re.match(r"ray::(\w+(?::\w+)*)", command):
        return found[1]
    known = ("gcs_server", "raylet/raylet", "dashboard/agent", "runtime_env/agent", "log_monitor", "haproxy", "java")
    return next((name for name in known if name in command), "other")


def _figures(statuses: dict[str, int], seconds: float, ms: Any, cpu_s: float) -> dict[str, Any]:
    return {
        "requests_per_s": round(statuses.get("OK", 0) / seconds, 1),
        "ms_p50": round(ms.get("p50", 0.0), 1),
        "ms_p99": round(ms.get("p99", 0.0), 1),
        "client_cpu_s": round(cpu_s, 2),
        "statuses": dict(statuses),
    }


def rounds(served: Served, load: Load, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for HTTP and one for gRPC, per number of clients: the round with the median of the requests/s."""
    ways = {way: ask for way, ask in {"HTTP": by_http, "gRPC": by_grpc}.items() if way in chosen.ways}
    for clients in chosen.clients:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for ask in ways.values():
            ask(served, load, clients, chosen.warm_up)
        for _ in range(chosen.rounds):
            for way, ask in ways.items():
                found[way].append(_with_cpu(ask, served, load, clients, chosen.seconds))
        for way, of_way in found.items():
            ordered = sorted(of_way, key=lambda figures: float(figures["requests_per_s"]))
            all_rates = [figures["requests_per_s"] for figures in of_way]
            row = {"server": f"{served.name} {way}", "clients": clients, **ordered[len(ordered) // 2]}
            yield {**row, "rounds_per_s": all_rates, "failed": any(set(one["statuses"]) != {"OK"} for one in of_way)}


def _with_cpu(ask: Any, served: Served, load: Load, clients: int, seconds: float) -> dict[str, Any]:
    """The figures of a round, and the CPU time of the server's processes: in all, and those with the most."""
    before = servers_cpu_s()
    figures: dict[str, Any] = ask(served, load, clients, seconds)
    used = {name: spent - before.get(name, 0.0) for name, spent in servers_cpu_s().items()}
    answered = max(1, figures["statuses"].get("OK", 0))
    most = sorted(used.items(), key=lambda item: -item[1])[:8]
    by_process = {name: round(spent * 1e3 / answered, 2) for name, spent in most if spent > 0}
    return {**figures, "server_cpu_ms": round(sum(used.values()) * 1e3 / answered, 2), "by_process_ms": by_process}


def conditions(chosen: argparse.Namespace, load: Load) -> dict[str, Any]:
    """What the figures depend on."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip(),
        "versions": {name: importlib.metadata.version(name) for name in ("ray", "grpcio", "torch", "torchserve")},
        "cores": os.cpu_count(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "request": load.name,
        "workers": chosen.workers,
        "fronts": chosen.fronts,
        "seconds": chosen.seconds,
        "haproxy": None,  # until Ray has started
    }


SERVERS = {"torchserve": torchserve, "ray": ray}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("archive", type=Path)
    found.add_argument("--workers", type=int, default=1)
    found.add_argument("--fronts", type=int, default=1, help="Ray's processes that read requests")
    found.add_argument("--gpu-share", type=float, default=0, help="of a GPU per replica (default: the CPU)")
    found.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    found.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    found.add_argument("--ways", nargs="+", choices=("HTTP", "gRPC"), default=["HTTP", "gRPC"])
    found.add_argument("--texts-per-request", type=int, default=1)
    found.add_argument("--raw", action="store_true", help="ask for raw vectors in place of JSON, by HTTP")
    found.add_argument(
        "--pixels",
        type=int,
        help="width and height of the pictures; 28: next to no work for the model, so hosts show",
    )
    found.add_argument("--seconds", type=float, default=5)
    found.add_argument("--warm-up", type=float, default=3)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--out", type=Path, help="JSON; rows are printed too")
    return found


def _size(chosen: argparse.Namespace) -> tuple[int, int]:
    return (chosen.pixels, chosen.pixels) if chosen.pixels else loads.SIZE


def main() -> int:
    chosen = parser().parse_args()
    archive = archives.read(str(chosen.archive.resolve()))
    load = loads.texts(None, chosen.texts_per_request) if archive.kind == TEXTS else loads.images(None, _size(chosen))
    if chosen.raw:
        load = replace(load, headers={**load.headers, "Accept": "application/octet-stream"})
    # A number alone is refused by gRPC: it has no content type that says whether it is a text or JSON.
    load = replace(load, bodies=[body for body in load.bodies if not body.isdigit()])
    told: dict[str, Any] = {"conditions": conditions(chosen, load), "rows": []}
    for name in chosen.servers:
        with SERVERS[name](archive, chosen) as served:
            if name == "ray":
                told["conditions"]["haproxy"] = served.haproxy
            for row in rounds(served, load, chosen):
                told["rows"].append(row)
                print(json.dumps(row), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(any(row["failed"] for row in told["rows"]))


if __name__ == "__main__":
    sys.exit(main())
