"""Measure the CPU time that a worker takes for a request, by step, without a network: the engine's outputs are ready.

A request is read from a socket by TorchServe's own worker code, goes through the real handler, and its answer is
written to the socket. What a GPU's driver takes for launches and copies is not in it.

  handler    `handle` of the entry, whole
  worker     the same, with what TorchServe's Python worker does around it
  read, prepare, run, write, report    the handler's steps; tokenize and pack are parts of prepare and run

All figures are microseconds of CPU per request, of all threads of the process. Each is the least of many repeats:
whatever else runs on the machine can only add. --against compares with another checkout, in turns.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from costing import models
from costing.front_end import Case, FrontEnd
from serving_bench import loads
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_service_worker import TorchModelServiceWorker  # noqa: F401 - tells handlers that TorchServe reads
from ts.protocol.otf_message_handler import create_predict_response, retrieve_msg
from ts.service import Service

from handlers.protocol import writer
from handlers.serving.steps import Steps

ROOT = Path(__file__).parents[2]
CASES = ("text", "texts32", "jpeg")
Figures = dict[str, dict[str, float]]  # by case and batch size, by step: microseconds per request


def main() -> int:
    chosen = parser().parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen)))
        return 0
    trees = [ROOT, *([chosen.against.resolve()] if chosen.against else [])]
    found: list[Figures] = [{} for _ in trees]
    for _ in range(chosen.rounds):
        for tree, figures in zip(trees, found, strict=True):
            _keep_least(figures, _child(tree))
    show(found[0], found[1] if chosen.against else None)
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    found.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="(default: 1 8 64)")
    found.add_argument("--seconds", type=float, default=1.0, help="per figure and round (default: 1)")
    found.add_argument("--rounds", type=int, default=3, help="processes per checkout, in turns (default: 3)")
    found.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, whose handlers run in turns")
    found.add_argument("--profile", action="store_true", help="print where the time goes, by function")
    found.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return found


def measure(chosen: argparse.Namespace) -> Figures:
    """Return the figures of the handlers that this process imports."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        for case in map(case_of, chosen.cases):
            folder = Path(name) / case.name
            folder.mkdir()
            made = models.image_classifier if case.name == "jpeg" else models.text_encoder
            handler = made(folder)
            for size in chosen.batches:
                bench = Bench(handler, case, size, chosen.seconds)
                found[f"{case.name} x{size}"] = bench.figures()
                if chosen.profile:
                    bench.profile()
    return found


def case_of(name: str) -> Case:
    """Return the requests of a case."""
    load = loads.images(None, loads.SIZE) if name == "jpeg" else loads.texts(None, 32 if name == "texts32" else 1)
    return Case(name, load.bodies, {key.lower(): value for key, value in load.headers.items()})


class Bench:
    """One case in batches of one size.

    Args:
        seconds: that each figure is measured for.
    """

    def __init__(self, handler: Any, case: Case, size: int, seconds: float) -> None:
        self.handler, self.size, self.seconds = handler, size, seconds
        self.service = _service(handler)
        self.message = case.message(size)
        front = FrontEnd(self.message, 0)
        self.answer_size = len(self._worker_once(front.worker))
        front.close()
        headers, self.rows, identities = Service.retrieve_data_for_inference(self.batch)
        self.context = self.service.context
        self.context.request_ids, self.context.request_processor = identities, headers
        if any(self.context.get_response_status(index)[0] != 200 for index in range(size)):
            raise SystemExit(f"the handler refuses the case {case.name}")

    def figures(self) -> dict[str, float]:
        """Return microseconds of CPU per request, by step."""
        found = {"handler": self._least(lambda: self.handler.handle(self.rows, self.context))}
        front = FrontEnd(self.message, self.answer_size)
        found["worker"] = self._least(lambda: front.worker.sendall(self._worker_once(front.worker)))
        front.close()
        return {**found, **self._steps()}

    def profile(self) -> None:
        """Print the functions that take the most time."""
        profiler = cProfile.Profile(time.process_time)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            profiler.runcall(self.handler.handle, self.rows, self.context)
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(45)

    def _worker_once(self, connection: Any) -> bytearray:
        """Do what TorchServe's worker does for one batch."""
        _, self.batch = retrieve_msg(connection)
        answer: bytearray = self.service.predict(self.batch)
        return answer

    def _least(self, work: Callable[[], object]) -> float:
        least, end = float("inf"), time.monotonic() + self.seconds
        while time.monotonic() < end:
            begin = time.process_time_ns()
            work()
            least = min(least, time.process_time_ns() - begin)
        return least / 1e3 / self.size

    def _steps(self) -> dict[str, float]:
        """The handler's steps one by one, as `handle` takes them."""
        clock = Clock()
        handler, end = self.handler, time.monotonic() + 2 * self.seconds
        with clock.inside(handler):
            while time.monotonic() < end:
                steps = Steps()
                with clock("read"):
                    requests = handler.reader.read(self.rows, self.context)
                with clock("prepare and run"):
                    ran = handler.complete(requests, steps)
                with clock("write"):
                    bodies = writer.write(requests, self.context)
                with clock("report"):
                    handler.report(requests, ran, steps)
                with clock("TorchServe's answer"):
                    create_predict_response(bodies, self.context.request_ids, "", 200, self.context)
                clock.next_batch()
        return {step: ns / 1e3 / self.size for step, ns in clock.least.items()}


class Clock:
    """Keeps the least CPU time of each step, in nanoseconds."""

    def __init__(self) -> None:
        self.least: dict[str, int] = {}
        self.now: dict[str, int] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Measure what runs inside; a step may run several times in a batch."""
        begin = time.process_time_ns()
        yield
        self.now[step] = self.now.get(step, 0) + time.process_time_ns() - begin

    def next_batch(self) -> None:
        """Begin with the next batch."""
        self.least = {step: min(ns, self.least.get(step, ns)) for step, ns in self.now.items()}
        self.now = {}

    @contextmanager
    def inside(self, handler: Any) -> Iterator[None]:
        """Measure parts of "prepare and run" too, as steps of their own."""
        parts = [(handler, "prepare", "  prepare"), (handler, "answer", "  run")]
        if hasattr(handler, "tokenizer"):
            parts += [(handler.tokenizer.whole, "encode_batch", "    tokenize"), (handler, "batch_of", "    pack")]
        parts += [(handler.task, "answer", "    answer")]
        replaced = [(owner, name, self._timed(getattr(owner, name), step)) for owner, name, step in parts]
        for owner, name, timed in replaced:
            if name == "encode_batch":
                handler.tokenizer.whole = Stand(owner, timed, self._timed(owner.encode_batch_fast, "    tokenize"))
            else:
                setattr(owner, name, timed)
        yield
        for owner, name, _ in replaced:
            if name == "encode_batch":
                handler.tokenizer.whole = owner
            else:
                delattr(owner, name)

    def _timed(self, work: Callable[..., Any], step: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self(step):
                return work(*arguments, **options)

        return timed


class Stand:
    """A tokenizer whose calls are measured."""

    def __init__(self, whole: Any, encode_batch: Any, encode_batch_fast: Any) -> None:
        self.whole, self.encode_batch, self.encode_batch_fast = whole, encode_batch, encode_batch_fast

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def _service(handler: Any) -> Any:
    metrics = MetricsCacheYamlImpl(str(ROOT / "handlers" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = "model"
    service = Service("model", "", None, handler.handle, None, 64, True, metrics)
    service.set_cl_socket(None)
    return service


def _child(tree: Path) -> Figures:
    """The figures of a checkout's handlers, measured by this file in a process of its own."""
    paths = [str(tree), str(ROOT / "scripts" / "commands")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: Figures = json.loads(output.splitlines()[-1])
    return found


def _keep_least(figures: Figures, others: Figures) -> None:
    for case, steps in others.items():
        mine = figures.setdefault(case, {})
        for step, value in steps.items():
            mine[step] = min(value, mine.get(step, value))


def show(figures: Figures, others: Figures | None) -> None:
    """Print a table per case. others: of the other checkout."""
    for case, steps in figures.items():
        heads = ["this checkout", *([] if others is None else ["the other"])]
        print(f"\n{case + ', us per request':32}" + "".join(f"{head:>16}" for head in heads))
        for step, value in steps.items():
            other = "" if others is None else f"{others[case].get(step, float('nan')):16.2f}"
            print(f"{step:32}{value:16.2f}{other}")


if __name__ == "__main__":
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:  # TorchServe's worker logs so, to a pipe
        logging.basicConfig(stream=nowhere, format="%(message)s", level=logging.INFO)
        sys.exit(main())
