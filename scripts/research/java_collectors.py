"""Compare Java's garbage collectors under TorchServe: throughput and tail latency of a handler that does nothing.

Bodies of requests are garbage at once, gigabytes per second. A collector that stops Java for it delays every request.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from server.errors import ServerError
from serving_bench import archives, loads
from serving_bench.environment import environment
from serving_bench.fleet import Fleet
from serving_bench.generator import GeneratorError
from serving_bench.generator_options import add_generator_options, generators
from serving_bench.layouts import Layout
from serving_bench.measure import Bench, Setting
from serving_bench.resource_usage import GpuMonitor
from serving_bench.sweep import NOOP, Served

COLLECTORS = {
    "ZGC": "-XX:+UseZGC",
    "G1": "-XX:+UseG1GC",
    "Parallel": "-XX:+UseParallelGC",
}
VMARGS = "-Xmx8g -XX:MaxDirectMemorySize=2g"
ANSWER_BYTES, BATCH_SIZE, DELAY_MS = 350, 64, 1


def main() -> int:
    chosen = parser().parse_args()
    generator, open_loop = generators(chosen)
    with GpuMonitor() as gpus:
        bench = Bench(generator, open_loop, gpus, chosen.seconds, chosen.warm_up, show, lambda bench: None)
        for name in chosen.collectors:
            try:
                measure(bench, name, chosen.workers, chosen.clients, dict(chosen.setting))
            except (ServerError, GeneratorError, OSError) as error:
                bench.skip(name, str(error))
    content = {"conditions": environment(chosen.commit), "rows": bench.rows, "skipped": bench.skipped}
    if chosen.out:
        chosen.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("collectors", nargs="*", default=list(COLLECTORS), metavar="NAME", help=", ".join(COLLECTORS))
    found.add_argument("--workers", type=int, default=4, help="(default: 4)")
    found.add_argument("--clients", type=int, nargs="+", default=[64, 256, 768], help="(default: 64 256 768)")
    found.add_argument("--out", type=Path, metavar="FILE.json")
    found.add_argument("--commit", help="for the report (default: git describe)")
    add_generator_options(found.add_argument_group("load"))
    return found


def measure(bench: Bench, name: str, workers: int, clients: Sequence[int], settings: dict[str, str]) -> None:
    """Serve the handler under one collector, and put the load of JPEGs of 56 KB on it. Adds rows to `bench`."""
    load = loads.images(None, loads.SIZE)
    vmargs = {"vmargs": f"{VMARGS} {COLLECTORS[name]}", "job_queue_size": "1024"}
    with Fleet(Layout(), {**vmargs, **settings}, {}) as server:
        server.register(archives.make_noop(server.store, NOOP, ANSWER_BYTES), BATCH_SIZE, DELAY_MS)
        server.scale(NOOP, workers)
        subject = Served(server, NOOP, "no-op")
        bench.warm_up_java(subject, load, max(clients))
        for count in clients:
            show(name)
            bench.closed(subject, load, None, Setting(workers, BATCH_SIZE, DELAY_MS), count, collector=name)


def show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
