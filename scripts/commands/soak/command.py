"""The command line of scripts/soak, and the order of things."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pictures
import run_folders
from argument_types import positive, seconds
from demo import DIGITS, SENTENCES
from server.client import Client
from server.errors import ServerError
from server.http import Answer
from server.paths import ROOT
from serving_bench.archives import Archive
from serving_bench.archives import read as read_archive
from serving_bench.environment import environment
from serving_bench.temporary_server import TemporaryServer

from soak import growth, grpc_form, known, models, questions
from soak.changes import Changes
from soak.growth import Growth
from soak.own_archives import own_forms
from soak.report import Report
from soak.traffic import Connection, Traffic

REPORTS = ROOT / "build" / "soak"
HOUR_S = 3600.0
REPORT_EVERY_S, LINE_EVERY_S = 600.0, 60.0
LOAD_S = 900.0
# Small bodies and a small queue, so that a small heap holds them; config.properties has the arithmetic. The tokens
# outlive the run: a renewal makes the old one invalid at once, and each client would be refused for a moment.
SETTINGS = {
    "vmargs": "-Xmx512m -XX:MaxDirectMemorySize=512m",
    "max_request_size": str(2 << 20),
    "job_queue_size": "64",
    "token_expiration_min": str(60 * 24 * 30),
}
DESCRIPTION = f"""\
Serve three models on a TorchServe of its own, ask them in the forms of every protocol for an hour, and check each
answer against the one that the same question got alone. Meanwhile workers are added, ended without loss, replaced by
another version, and killed; some clients send nonsense, others hang up. {growth.RULE}
Watched are the JVM, each worker, the largest worker of each model, and each GPU's memory.
"""
EPILOG = """\
examples:
  scripts/soak                                       an hour; the report is build/soak/latest/soak.md, .json, .svg
  scripts/soak --hours 8 --out docs/soak/night       a night
  scripts/soak --seconds 120                         what CI runs
  scripts/soak --archive mine=mine.mar --sample mine=a.png      an archive of your own beside the others

Ctrl-C or SIGTERM ends it early, with a report of what was seen. The report is written every ten minutes too. A line
per minute says how far it is. It uses free ports and a folder of its own, and disturbs no other TorchServe.

A request may fail only if a worker of its model was killed meanwhile. A wrong answer, the answer to another request,
no answer within 150 s, a change that fails, and memory that is not flat are never right.

Exit status: 0 if all was right; 1 if not, with the reasons on standard output; 2 for a wrong command line.
"""


def main() -> int:
    chosen = parser().parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: _end(ended, frame))
    try:
        with run_folders.out_of(chosen.out, REPORTS, "soak", ("json", "md", "svg")) as chosen.out:
            files = {} if chosen.only else models.package(REPORTS / "archives")
            with TemporaryServer(SETTINGS) as server:
                return soak(chosen, server, files, ended)
    except (OSError, ServerError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/soak",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = found.add_mutually_exclusive_group()
    length.add_argument("--hours", type=seconds, metavar="H", help="how long (default: 1)")
    length.add_argument("--seconds", type=seconds, metavar="S", help="how long, in seconds")
    found.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the report's path without its ending, which no earlier run has used (default: build/soak/TIME/soak, "
        "TIME in UTC; build/soak/latest links to the last folder)",
    )
    found.add_argument("--clients", type=positive, default=6, metavar="N", help="at once (default: %(default)s)")
    found.add_argument(
        "--rate", type=float, default=40.0, metavar="R", help="requests/s of all clients; 0: no pauses (default: 40)"
    )
    found.add_argument(
        "--no-changes", action="store_true", help="only ask: no scaling, no deploys, no killed workers"
    )
    found.add_argument("--archive", action="append", default=[], metavar="NAME=FILE", help="one more archive")
    found.add_argument(
        "--sample", action="append", default=[], metavar="NAME=FILE", help="what to ask it; repeatable"
    )
    found.add_argument("--only", action="store_true", help="only those archives: no demo models, and no changes")
    found.add_argument("--commit", help="for the report (default: git describe)")
    return found


@dataclass
class Run:
    """A soak that is under way. start, length_s: of time.monotonic()."""

    traffic: Traffic
    changes: Changes
    growth: Growth
    start: float
    length_s: float
    report: Report

    def write(self, is_over: bool) -> Report:
        """Write the report of what was seen so far."""
        self.report.fill(self.traffic.tally, self.changes, self.growth, self.start, time.monotonic(), is_over)
        self.report.write()
        return self.report


def soak(chosen: argparse.Namespace, server: TemporaryServer, files: dict[str, Path], ended: threading.Event) -> int:
    """Serve, ask, change and watch. Returns the exit status. Raises ServerError or OSError."""
    length_s = chosen.seconds or (chosen.hours or 1.0) * HOUR_S
    own = _own(chosen)
    _serve(server, files, own)
    traffic = _traffic(chosen, server.client, own)
    print(f"{len(traffic.forms)} forms of requests; all agree. Soaking for {round(length_s, 2):g} s", flush=True)
    start = time.monotonic()
    watched = [*_served(files), *(archive.name for archive in own)]
    run = Run(
        traffic,
        Changes(server.client, server.store, _pause_s(length_s), start + length_s / 2, traffic.ended),
        Growth(server.client, lambda: [process.pid for process in server.groups().get("java", [])], watched),
        start,
        length_s,
        Report(chosen.out, length_s, environment(chosen.commit), SETTINGS, chosen.clients, chosen.rate),
    )
    _run(run, server, ended, not (chosen.no_changes or chosen.only))
    return run.write(is_over=True).show()


def _own(chosen: argparse.Namespace) -> list[Archive]:
    try:
        return [read_archive(text) for text in chosen.archive]
    except ValueError as error:
        raise ServerError(str(error)) from None


def _serve(server: TemporaryServer, files: dict[str, Path], own: Sequence[Archive]) -> None:
    pictures.say_if_missing()
    print("starting TorchServe and loading the models", flush=True)
    for name, file in files.items():
        (server.store / f"{name}.mar").symlink_to(file)
    for archive in (*(Archive(name, files[name]) for name in _served(files)), *own):
        server.register(archive, None, None)
        server.scale(archive.name, 1)


def _served(files: dict[str, Path]) -> list[str]:
    """The names of the models that serve from the beginning."""
    return [name for name in (DIGITS, SENTENCES, models.RERANKER) if name in files]


def _traffic(chosen: argparse.Namespace, client: Client, own: Sequence[Archive]) -> Traffic:
    """Ask everything once, alone, and make the clients of it. Raises ServerError if forms do not agree."""
    files, sentences = questions.pictures(), questions.texts()
    makers = questions.ImageForms(files), questions.TextForms(sentences), questions.RerankForms(sentences)
    forms = [] if chosen.only else [form for maker in makers for form in maker.all()]
    bad = questions.bad_messages(files[0], sentences[0])
    bad = {name: item for name, item in bad.items() if not item[0]} if chosen.only else bad
    token = client.token("inference")
    connection = Connection(client.inference, token)
    answers = known.ask_all(forms, questions.COUNT, bad, connection.ask)
    connection.close()
    inputs: dict[str, Sequence[int]] = {model: known.distinct(vectors) for model, vectors in answers.vectors.items()}
    for form in forms:
        if len(inputs[form.model]) < form.inputs + 2:
            raise ServerError(
                f"only {len(inputs[form.model])} questions to {form.model} have answers unlike each other"
            )
    own_forms(own, chosen.sample, forms, inputs, answers, lambda message: _once(client.inference, token, message))
    return Traffic(client.inference, token, forms, inputs, bad, answers, chosen.clients, chosen.rate)


def _once(address: str, token: str, message: questions.Message) -> Answer:
    connection = Connection(address, token)
    try:
        return connection.ask(message)
    finally:
        connection.close()


def _pause_s(length_s: float) -> float:
    """Between two changes."""
    return max(3.0, min(30.0, length_s / 40))


def _run(run: Run, server: TemporaryServer, ended: threading.Event, with_changes: bool) -> None:
    """Ask, change and watch until the time is over, `ended` is set, or the server ends."""
    traffic, work = run.traffic, list[threading.Thread]()
    for seed in range(traffic.clients):
        work.append(threading.Thread(target=traffic.run, args=(seed,), daemon=True))
    work.append(threading.Thread(target=_ask_by_grpc, args=(traffic, server.client), daemon=True))
    if with_changes:
        work.append(threading.Thread(target=run.changes.run, daemon=True))
    for thread in work:
        thread.start()
    try:
        _watch(run, server, ended)
    finally:
        traffic.ended.set()
        for thread in work:
            thread.join(LOAD_S)


def _ask_by_grpc(traffic: Traffic, client: Client) -> None:
    for form in traffic.forms:
        if form.name == "TorchServe, text":
            inputs = traffic.inputs[SENTENCES]
            grpc_form.ask_until(traffic.ended, client, form, questions.texts(), inputs, traffic.known, traffic.tally)


def _watch(run: Run, server: TemporaryServer, ended: threading.Event) -> None:
    sample_every = max(1.0, min(15.0, run.length_s / 200))
    next_line, next_report = run.start + LINE_EVERY_S, run.start + REPORT_EVERY_S
    while (now := time.monotonic()) < run.start + run.length_s and not ended.wait(sample_every):
        run.growth.sample()
        server.trim_log()
        if server.server.process is None or server.server.process.poll() is not None:
            run.report.problems.append("TorchServe ended by itself")
            return
        if now >= next_line:
            print(run.report.line(run.traffic.tally, run.changes, run.growth, run.start), flush=True)
            next_line += LINE_EVERY_S
        if now >= next_report:
            run.write(is_over=False)
            next_report += REPORT_EVERY_S
    run.report.interrupted = ended.is_set()


def _end(ended: threading.Event, frame: FrameType | None) -> None:
    print("ending early; the report follows", file=sys.stderr, flush=True)
    ended.set()
