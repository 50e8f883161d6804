"""A run of scripts/bench_serving: what the options ask for, measured and reported."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import demo
import pictures
import run_folders
from benchmarks.conditions import slug
from server import mps
from server.errors import ServerError
from server.options import client_of
from server.paths import MODEL_STORE, ROOT

from serving_bench import address, archives, engine_alone, engine_speed, layouts, page, report, rows, sweep
from serving_bench.archives import Archive
from serving_bench.environment import environment, gpu_names
from serving_bench.generator import Generator, GeneratorError
from serving_bench.generator_options import generators
from serving_bench.layouts import Layout
from serving_bench.load_options import load_for
from serving_bench.measure import Bench
from serving_bench.peers import needs
from serving_bench.peers.needs import Interpreter
from serving_bench.plan import PEERS, Plan
from serving_bench.resource_usage import GpuMonitor
from serving_bench.stream_generator import StreamGenerator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESULTS = ROOT / "build" / "serving"
SUFFIXES = ("json", "csv", "html")
QUICK: dict[str, Any] = {"workers": [1], "clients": [16], "seconds": 4.0, "warm_up": 1.0, "rate": ["50%"]}
WORKERS = [1, 2, 4]
QUICK_BATCH = 1.5  # the least requests per batch, in the mean of 16 clients, that show that batching works
Measure = Callable[[Bench, dict[str, Any]], None]


def guarded(chosen: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """The exit status of run(chosen): 1 with a message for what it raises, 130 if it is interrupted.

    A KeyboardInterrupt may hold words on what there is then.
    """
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        return run(chosen)
    except KeyboardInterrupt as stop:
        print(f"\nstopped; {stop if stop.args else 'nothing was measured'}", file=sys.stderr)
        return 130
    except (OSError, ValueError, ServerError, GeneratorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip() if error.stderr else str(error)
        print(f"error: {Path(str(error.cmd[0])).name} failed: {reason}", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt once: a second Ctrl-C would leave processes behind while the server is being ended."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(chosen: argparse.Namespace) -> int:
    """Do what the options ask for; the exit status.

    Raises ValueError, OSError, ServerError or GeneratorError if nothing can be measured.
    """
    if chosen.redraw is not None:
        return redraw(chosen.redraw)
    if chosen.install_peers:
        for line in needs.install({name: PEERS[name] for name in chosen.install_peers}):
            print_now(line)
        return 0
    if chosen.quick:
        vars(chosen).update(QUICK)
    if chosen.archives and chosen.address:
        raise ValueError("name archives, or an --address, not both")
    if chosen.address:
        return run_address(chosen)
    if not chosen.archives:
        if not chosen.quick:
            raise ValueError(
                "name an archive, such as model_store/digits.mar (scripts/package makes them), or --address"
            )
        chosen.archives = demo_archives()
    return run_archives(chosen)


def run_archives(chosen: argparse.Namespace) -> int:
    """Measure archives in a TorchServe of this program's own."""
    names = [archive.name for archive in chosen.archives]
    if len(set(names)) < len(names):
        raise ValueError(f"archives are called {', '.join(names)}; wanted: NAME=FILE.mar with a name each")
    pairs = [(archive, load_for(archive, chosen)) for archive in chosen.archives]

    found = layouts_of(chosen)
    interpreters = interpreters_of(chosen)

    def measure(bench: Bench, about: dict[str, Any]) -> None:
        about["peers"] = {name: dict(python.versions) for name, python in interpreters.items()}
        plan = replace(plan_of(chosen), interpreters=interpreters)
        waits = {"reason": plan.no_engine} if plan.no_engine else engine_alone.NOT_YET
        about["engine_alone"] = {archive.name: dict(waits) for archive in chosen.archives}
        measured = sweep.run_layouts(bench, found, dict(chosen.setting), plan, pairs)
        about["archives"] |= measured
        if not plan.no_engine:
            engine_alone.measure_all(bench, pairs, found[0], visible_gpus(), about["engine_alone"])

    return _run(chosen, "-".join(names), measure)


def layouts_of(chosen: argparse.Namespace) -> list[Layout]:
    """The layouts that the options ask for. Raises ValueError for what this machine or the options cannot give."""
    if True in chosen.mps:
        mps.check()
    found = layouts.layouts(chosen.gpus, chosen.servers, chosen.mps, len(gpu_names()))
    for layout in found:
        for option, counts in (("--workers", chosen.workers or WORKERS), ("--clients", chosen.clients)):
            for count in counts:
                if count * layout.factor % layout.servers:
                    raise ValueError(f"{option} {count} cannot be divided evenly between {layout.servers} servers")
    return found


def interpreters_of(chosen: argparse.Namespace) -> dict[str, Interpreter]:
    """The interpreters of the peers that are asked for. Raises ValueError, which names what is missing."""
    given = dict(chosen.peer_python)
    if unasked := given.keys() - set(chosen.peer):
        raise ValueError(f"--peer-python names {', '.join(sorted(unasked))}, which --peer does not")
    if chosen.peer:
        print_now(f"looking for the packages of {', '.join(chosen.peer)}")
    return needs.interpreters({name: PEERS[name] for name in chosen.peer}, chosen.archives, given)


def run_address(chosen: argparse.Namespace) -> int:
    """Measure a server that runs already."""
    if chosen.gpus or chosen.servers != [layouts.ONE] or chosen.mps != [None]:
        raise ValueError("--gpus, --servers and --mps are for servers that this program starts, not for --address")
    if chosen.peer:
        raise ValueError("--peer needs archives: peers take the network from them, not from --address")
    server = address.find(chosen.address, client_of(chosen))
    load = load_for(None, chosen)

    def measure(bench: Bench, about: dict[str, Any]) -> None:
        sweep.run_address(bench, server, plan_of(chosen), chosen.workers, load)

    return _run(chosen, server.model or "address", measure)


def _run(chosen: argparse.Namespace, name: str, measure: Measure) -> int:
    generator, open_loop = generators(chosen)
    about = conditions(chosen, generator, open_loop)
    default = f"{name}-{slug(about['conditions']['gpu'])}"
    with run_folders.out_of(chosen.out, RESULTS, default, SUFFIXES) as out:
        _print_conditions(about, generator, open_loop)
        pictures.say_if_missing()
        print_now(f"results: {out}.json")
        return _measured(chosen, out, about, generator, open_loop, measure)


def _measured(
    chosen: argparse.Namespace,
    out: Path,
    about: dict[str, Any],
    generator: Generator,
    open_loop: StreamGenerator,
    measure: Measure,
) -> int:
    """Measure, write the results to OUT, and return the exit status."""

    def save(found: Bench) -> None:
        report.write(out, report.document(found, about))

    with GpuMonitor() as gpus:
        bench = Bench(generator, open_loop, gpus, chosen.seconds, chosen.warm_up, print_now, save)
        bench.engine = engine_speed.given(chosen.engine_items_per_second, visible_gpus())
        try:
            measure(bench, about)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*left_by(bench, out)) from None
    return finish(bench, out, about, chosen.quick)


def left_by(bench: Bench, out: Path) -> list[str]:
    """Return where the points of a run are that was stopped; nothing if there are none."""
    count = len(bench.rows)
    points = "the point that was measured is" if count == 1 else f"the {count} points that were measured are"
    return [f"{points} in {out}.json; --redraw {out}.json makes CSV and page of it"] if count else []


def redraw(file: Path) -> int:
    """Write CSV and page beside an earlier run's JSON."""
    content = report.read(file)
    report.write(file.with_suffix(""), content)
    page.write(file.with_suffix(".html"), content)
    print(report.table(content))
    return 0


def finish(bench: Bench, out: Path, about: dict[str, Any], quick: bool) -> int:
    """Write everything.

    The exit status is 1 if an answer was wrong, if a host of the same archive answered something else than
    TorchServe, or if a check of --quick fails.
    """
    content = report.document(bench, about)
    report.write(out, content)
    page.write(out.with_name(f"{out.name}.html"), content)
    print(f"\n{report.table(content)}\n\nwritten: {out}.html, .json and .csv")
    failures = [f"{row['target']}: wrong answers" for row in bench.rows if row.get("answers_wrong")]
    failures += sorted({f"{row['target']}: {trouble}" for row in bench.rows for trouble in rows.disagreements(row)})
    failures += quick_failures(content) if quick else []
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def quick_failures(content: Mapping[str, Any]) -> list[str]:
    """What --quick checks besides the answers: all was run, no errors, and batches of more than one request."""
    found = [f"{item['name']}: not run, {item['reason']}" for item in content["skipped"]]
    for row in content["rows"]:
        if row["errors"]:
            found.append(f"{row['target']}: {row['errors']} requests failed")
        if row["kind"] != "no-op" and not row["answers_right"]:
            found.append(f"{row['target']}: no answer could be checked")
        if row["kind"] == "archive" and row["loop"] == "closed" and (row["mean_batch"] or 0) < QUICK_BATCH:
            found.append(f"{row['target']}: {row['mean_batch']} requests in the mean batch; wanted: {QUICK_BATCH}")
    return found


def conditions(chosen: argparse.Namespace, generator: Generator, open_loop: StreamGenerator) -> dict[str, Any]:
    """What the report says of the run, as far as it is known before the first point."""
    return {
        "conditions": {**environment(chosen.commit), "generator": generator.name, "open_loop": open_loop.name},
        "settings": {
            "seconds": chosen.seconds,
            "warm_up": chosen.warm_up,
            "config.properties": dict(chosen.setting),
            "gpus": chosen.gpus,
            "servers": chosen.servers,
            "mps": ["as the machine has it" if on is None else "on" if on else "off" for on in chosen.mps],
            "peers": chosen.peer,
            "engine": chosen.engine,
            "engine_items_per_second": chosen.engine_items_per_second,
        },
        "archives": {archive.name: archive.about() for archive in chosen.archives},
    }


def plan_of(chosen: argparse.Namespace) -> Plan:
    """The points that the options ask for."""
    return Plan(
        chosen.workers or WORKERS,
        chosen.clients,
        chosen.batch_size,
        chosen.batch_delay_ms,
        chosen.rate,
        not chosen.no_noop,
        chosen.peer,
        no_engine=why_no_engine(chosen),
    )


def why_no_engine(chosen: argparse.Namespace) -> str | None:
    """Why the archives' engines are not measured alone; None if they are."""
    if chosen.engine == "measure":
        return None
    if chosen.engine == "none":
        return "--engine none was given"
    reasons = {
        "an --address was given, and no archive": chosen.address,
        "--engine-items-per-second gives its speed": chosen.engine_items_per_second,
        "--quick measures no speeds": chosen.quick,
        "--no-noop was given": chosen.no_noop,
    }
    return next((f"{reason}; --engine measure measures it" for reason, holds in reasons.items() if holds), None)


def visible_gpus() -> int:
    """How many GPUs the servers see, unless --gpus says it."""
    return layouts.count_visible(os.environ, len(gpu_names()))


def demo_archives() -> list[Archive]:
    """The demo's archives, packaged first unless they are up to date."""
    demo.package_demo()
    return [archives.read(str(MODEL_STORE / f"{name}.mar")) for name in (demo.DIGITS, demo.SENTENCES)]


def _print_conditions(about: dict[str, Any], generator: Generator, open_loop: StreamGenerator) -> None:
    found = about["conditions"]
    print_now(f"on {found['gpus'] or 'no'} GPU ({found['gpu']}), {found['cores']} cores of {found['cpu']}")
    print_now(f"load by {generator.name}; open loop by {open_loop.name}")
    if isinstance(generator, StreamGenerator):
        print_now("wrk would take half the CPU: apt install wrk, or --wrk PATH")


def print_now(line: str) -> None:
    """Print without waiting for a full buffer: a run takes minutes."""
    print(line, flush=True)
