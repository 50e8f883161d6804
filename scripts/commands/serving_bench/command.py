"""The command line of scripts/bench_serving, and a run of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import tokens
from benchmarks.commands import checked, parts, positive
from benchmarks.conditions import slug
from torchserve import ServerError

from serving_bench import archives, engine_speed, loads, page, report, running, sweep, wrk
from serving_bench.archives import IMAGES, TEXTS, Archive
from serving_bench.deployment import Deployment
from serving_bench.environment import environment
from serving_bench.load import Generator, GeneratorError, Load
from serving_bench.measure import Bench
from serving_bench.streams import Streams
from serving_bench.watch import Gpus

ROOT = Path(__file__).parents[3]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUT = ROOT / "build" / "serving"
DESCRIPTION = """\
Measure what a client gets: start a real TorchServe with the archives on free ports, put it under load, and report
requests/s, latencies, errors, batch sizes, where a request's time goes, and what CPU, memory and GPU it takes.
docs/batching.md says what each figure means.

For each archive, and each count of workers, it runs a closed loop with each number of clients (a client sends its
next request as soon as its last is answered), then an open loop at --rate (requests come at random moments, whatever
is still unanswered; latencies count from the moment at which a request was due).

In the same run a handler that does nothing takes and gives the same bytes. Its requests/s are the most that
TorchServe's front end and the load generator can do here; a figure near it says nothing of the model.

Answers are compared with those of lone requests, under load and after each point: a fast wrong answer is no result.
"""
EPILOG = """\
examples:
  scripts/bench_serving model_store/resnet101.mar                              JPEGs of 500x375
  scripts/bench_serving model_store/resnet101.mar --size 1280x960 --workers 4,8 --clients 256
  scripts/bench_serving old=before.mar new=after.mar --tensors uint8 32        two archives side by side
  scripts/bench_serving model_store/bert-large.mar --texts-per-request 32 --accept application/octet-stream
  scripts/bench_serving bert-large.mar --engine-items-per-second docs/benchmarks/bert-large-h200.json:32x128
  scripts/bench_serving model_store/resnet101.mar --setting job_queue_size=1024 --clients 512
  scripts/bench_serving --quick model_store/digits.mar model_store/sentences.mar
  scripts/bench_serving --redraw build/serving/resnet101-h200.json             write CSV and page again

The load comes from wrk if it is installed (apt install wrk) or named by --wrk, else from a generator of this project,
which takes about twice the CPU. The open loop always comes from the latter.

Exit status: 0; 1 if an answer was wrong, or with --quick if a request failed or batches did not fill; 130 if stopped.
"""
QUICK: dict[str, Any] = {"workers": [1], "clients": [16], "seconds": 4.0, "warm_up": 1.0, "rate": ["50%"]}
WORKERS = [1, 2, 4]
QUICK_BATCH = 1.5  # requests in the mean batch of 16 clients, or batching does not work


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/bench_serving",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("archives", nargs="*", type=_archive, metavar="[NAME=]FILE.mar", help="to serve, one by one")
    _add_address(found.add_argument_group("a server that runs already"))
    add_load(found.add_argument_group("load (by default what fits the archive: photographs, or texts)"))
    _add_sweep(found.add_argument_group("what is varied (LIST: numbers, separated by commas)"))
    _add_peers(found.add_argument_group("peers"))
    add_generator(found.add_argument_group("load generator and server"))
    _add_report(found.add_argument_group("report"))
    return found


def _add_address(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--address",
        metavar="URL",
        help="instead of archives: http://127.0.0.1:8080/predictions/NAME of a TorchServe, or what any other server "
        "answers POST at. --folder and --ts-config find a TorchServe's token, workers and metrics; for other tokens "
        "there is --header",
    )
    tokens.add_server(group)


def add_load(group: argparse._ArgumentGroup) -> None:
    """What is sent; see load_for."""
    group.add_argument("--image", type=Path, metavar="PATH", help="a file or folder of images")
    group.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="pixels of JPEGs made of them (default: as they are; 500x375 of two photographs)",
    )
    group.add_argument(
        "--tensors", nargs=2, metavar=("KIND", "N"), help="N crops a request as .npy; KIND: uint8, fp16 or fp32"
    )
    group.add_argument("--texts", type=Path, metavar="FILE", help="one text a line (default: 35 of this project)")
    group.add_argument(
        "--texts-per-request",
        type=positive,
        default=1,
        metavar="N",
        help="as a JSON list (default: 1, as text/plain)",
    )
    group.add_argument("--body", type=Path, nargs="+", metavar="FILE", help="bodies as they are, with --content-type")
    group.add_argument("--content-type", metavar="MIME", help="of --body")
    group.add_argument(
        "--items-per-request", type=positive, default=1, metavar="N", help="inputs in each --body (default: 1)"
    )
    group.add_argument("--accept", metavar="MIME", help="header of each request, as application/octet-stream")
    group.add_argument(
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="'NAME: VALUE'",
        help="more of them; repeatable",
    )


def _add_sweep(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--workers", type=_counts, metavar="LIST", help="(default: 1,2,4; of --address: as they are)")
    group.add_argument(
        "--clients", type=_counts, default=[1, 16, 64, 256], metavar="LIST", help="(default: 1,16,64,256)"
    )
    group.add_argument("--batch-size", type=_counts, default=[None], metavar="LIST", help="(default: the archive's)")
    group.add_argument(
        "--batch-delay-ms", type=_counts, default=[None], metavar="LIST", help="(default: the archive's)"
    )
    group.add_argument(
        "--rate",
        type=_rates,
        default=["70%"],
        metavar="LIST",
        help="of the open loop: requests/s, or a share of what the closed loop reached; none: leave it out "
        "(default: 70%%)",
    )


def _add_peers(group: argparse._ArgumentGroup) -> None:
    said = "; ".join(f"{name}: {module.WHAT}" for name, module in sweep.PEERS.items())
    group.add_argument(
        "--peer",
        type=_peers,
        default=[],
        metavar="LIST",
        help=f"the same network and load through others too. {said}. One that can't run here is said and skipped",
    )


def add_generator(group: argparse._ArgumentGroup) -> None:
    """How the load is made, for how long, and the server's settings meanwhile."""
    group.add_argument("--seconds", type=_seconds, default=5.0, metavar="S", help="of a point (default: %(default)s)")
    group.add_argument(
        "--warm-up", type=_seconds, default=2.0, metavar="S", help="before each (default: %(default)s)"
    )
    group.add_argument(
        "--generator", choices=("auto", "wrk", "streams"), default="auto", help="(default: wrk if found)"
    )
    group.add_argument("--wrk", metavar="PATH", help="the program (default: from the PATH)")
    group.add_argument(
        "--generator-threads", type=positive, metavar="N", help="or processes (default: a quarter of the cores)"
    )
    group.add_argument(
        "--setting",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="of config.properties, in place of the project's; repeatable",
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--no-noop", action="store_true", help="skip the proof that the generator is not the limit")
    group.add_argument(
        "--engine-items-per-second",
        metavar="X|FILE.json[:POINT]",
        help="the engine's own speed, to give a share of it: a number, or the fastest row of a JSON of "
        "scripts/bench_model (at a point: 64, or 32x128)",
    )
    group.add_argument("--out", type=Path, metavar="PATH", help="without a suffix (default: build/serving/NAME-GPU)")
    group.add_argument("--commit", help="to note where git cannot tell (default: git describe)")
    group.add_argument(
        "--quick",
        action="store_true",
        help="a short load that checks answers, errors and batching, not times; without archives, the demo's",
    )
    group.add_argument("--redraw", type=Path, metavar="FILE.json", help="write the rest beside an earlier run's JSON")


def guarded(chosen: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Exit status of run(chosen): 1 with a message for what it raises, 130 if it is interrupted."""
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        return run(chosen)
    except KeyboardInterrupt:
        print("\nstopped; what was measured until then is in the JSON, if there is one", file=sys.stderr)
        return 130
    except (OSError, ValueError, ServerError, GeneratorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() if error.stderr else str(error)
        print(f"error: {Path(str(error.cmd[0])).name} failed: {said}", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: while the server is being ended, a second Ctrl-C would leave processes behind."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(chosen: argparse.Namespace) -> int:
    """Raises ValueError, OSError, ServerError or GeneratorError if nothing can be measured."""
    if chosen.redraw is not None:
        return redraw(chosen.redraw)
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
    pairs = [(archive, load_for(archive, chosen)) for archive in chosen.archives]
    names = [archive.name for archive in chosen.archives]
    if len(set(names)) < len(names):
        raise ValueError(f"archives are called {', '.join(names)}; wanted: NAME=FILE.mar with a name each")

    def measure(bench: Bench, about: dict[str, Any]) -> None:
        with Deployment(dict(chosen.setting)) as deployment:
            about["archives"] = sweep.run(bench, deployment, plan_of(chosen), pairs)

    return _run(chosen, "-".join(names), measure)


def run_address(chosen: argparse.Namespace) -> int:
    """Measure a server that runs already."""
    server = running.find(chosen.address, tokens.client(chosen))
    load = load_for(None, chosen)

    def measure(bench: Bench, about: dict[str, Any]) -> None:
        sweep.run_address(bench, server, plan_of(chosen), chosen.workers, load)

    return _run(chosen, server.model or "address", measure)


def _run(chosen: argparse.Namespace, name: str, measure: Callable[[Bench, dict[str, Any]], None]) -> int:
    generator, open_loop = generators(chosen)
    about = conditions(chosen, generator, open_loop)
    out = chosen.out or OUT / f"{name}-{slug(about['conditions']['gpu'])}"
    out.parent.mkdir(parents=True, exist_ok=True)
    _tell(about, generator, open_loop)

    def save(found: Bench) -> None:
        report.write(out, report.document(found, about))

    with Gpus() as gpus:
        bench = Bench(generator, open_loop, gpus, chosen.seconds, chosen.warm_up, say, save)
        bench.engine_items_per_s = engine_speed.items_per_s(chosen.engine_items_per_second)
        measure(bench, about)
    return finish(bench, out, about, chosen.quick)


def redraw(file: Path) -> int:
    """Write CSV and page beside an earlier run's JSON."""
    content = report.read(file)
    report.write(file.with_suffix(""), content)
    page.write(file.with_suffix(".html"), content)
    print(report.table(content))
    return 0


def finish(bench: Bench, out: Path, about: dict[str, Any], quick: bool) -> int:
    """Write everything. Exit status 1 if an answer was wrong, or if quick's checks fail."""
    content = report.document(bench, about)
    report.write(out, content)
    page.write(out.with_name(f"{out.name}.html"), content)
    print(f"\n{report.table(content)}\n\nwritten: {out}.html, .json and .csv")
    failed = [f"{row['target']}: wrong answers" for row in bench.rows if row.get("answers_wrong")]
    failed += quick_failures(bench) if quick else []
    for said in failed:
        print(f"FAILED: {said}")
    return 1 if failed else 0


def quick_failures(bench: Bench) -> list[str]:
    """What --quick checks besides the answers: no errors, and batches of more than one."""
    found = []
    for row in bench.rows:
        if row["errors"]:
            found.append(f"{row['target']}: {row['errors']} requests failed")
        if row["kind"] == "archive" and not row["answers_right"]:
            found.append(f"{row['target']}: no answer could be checked")
        if row["kind"] == "archive" and row["loop"] == "closed" and (row["mean_batch"] or 0) < QUICK_BATCH:
            found.append(f"{row['target']}: {row['mean_batch']} requests in the mean batch; wanted: {QUICK_BATCH}")
    return found


def load_for(archive: Archive | None, chosen: argparse.Namespace) -> Load:
    """What the options ask for, or what fits the archive. Raises ValueError."""
    load = _load(archive, chosen)
    extra = dict(chosen.header) | ({"Accept": chosen.accept} if chosen.accept else {})
    name = f"{load.name}, {', '.join(extra.values())}" if extra else load.name
    return Load(name, load.bodies, {**load.headers, **extra}, load.unit, load.items)


def _load(archive: Archive | None, chosen: argparse.Namespace) -> Load:
    if chosen.body:
        if not chosen.content_type:
            raise ValueError("--body wants --content-type, such as image/jpeg or application/json")
        return loads.body(chosen.body, chosen.content_type, chosen.items_per_request)
    if chosen.tensors:
        kind, count = chosen.tensors
        if kind not in loads.TENSOR_KINDS or not count.isdigit() or int(count) < 1:
            raise ValueError(
                f"--tensors {kind} {count}; wanted: {', '.join(loads.TENSOR_KINDS)}, and a number from 1"
            )
        return loads.tensors(kind, int(count), archive.handler.get("preprocess", {}) if archive else {})
    kind = archive.kind if archive else None
    of_texts = chosen.texts is not None or chosen.texts_per_request > 1
    if of_texts or (kind == TEXTS and chosen.image is None and chosen.size is None):
        return loads.texts(chosen.texts, chosen.texts_per_request)
    if chosen.image is not None or chosen.size is not None or kind == IMAGES:
        return loads.images(chosen.image, chosen.size or (None if chosen.image else loads.SIZE))
    what = archive.file.name if archive else chosen.address
    raise ValueError(f"what is {what} to be sent? Say --image, --tensors, --texts or --body")


def generators(chosen: argparse.Namespace) -> tuple[Generator, Streams]:
    """For the closed and for the open loop. Raises ValueError if wrk is asked for and missing."""
    threads = chosen.generator_threads or max(1, len(os.sched_getaffinity(0)) // 4)
    path = wrk.find(chosen.wrk)
    if chosen.generator == "wrk" and path is None:
        raise ValueError("wrk is not installed. On Debian and Ubuntu: apt install wrk; or name it: --wrk PATH")
    streams = Streams(threads)
    return (streams if path is None or chosen.generator == "streams" else wrk.Wrk(path, threads)), streams


def conditions(chosen: argparse.Namespace, generator: Generator, open_loop: Streams) -> dict[str, Any]:
    """All that is known before the first point."""
    return {
        "conditions": {**environment(chosen.commit), "generator": generator.name, "open_loop": open_loop.name},
        "settings": {
            "seconds": chosen.seconds,
            "warm_up": chosen.warm_up,
            "config.properties": dict(chosen.setting),
            "engine_items_per_second": chosen.engine_items_per_second,
        },
        "archives": {archive.name: archive.about() for archive in chosen.archives},
    }


def plan_of(chosen: argparse.Namespace) -> sweep.Plan:
    return sweep.Plan(
        chosen.workers or WORKERS,
        chosen.clients,
        chosen.batch_size,
        chosen.batch_delay_ms,
        chosen.rate,
        not chosen.no_noop,
        chosen.peer,
    )


def demo_archives() -> list[Archive]:
    """Packaged first if they are not up to date."""
    import serve

    serve.package_demo()
    return [archives.read(str(serve.MODEL_STORE / f"{name}.mar")) for name in (serve.DIGITS, serve.SENTENCES)]


def _tell(about: dict[str, Any], generator: Generator, open_loop: Streams) -> None:
    found = about["conditions"]
    say(f"on {found['gpus'] or 'no'} GPU ({found['gpu']}), {found['cores']} cores of {found['cpu']}")
    say(f"load by {generator.name}; open loop by {open_loop.name}")
    if isinstance(generator, Streams):
        say("wrk would take half the CPU: apt install wrk, or --wrk PATH")


def say(line: str) -> None:
    """For a person at a terminal, at once."""
    print(line, flush=True)


@checked
def _archive(text: str) -> Archive:
    return archives.read(text)


@checked
def _counts(text: str) -> list[int]:
    found = parts(text)
    if not all(part.isascii() and part.isdigit() and int(part) for part in found):
        raise ValueError(f"{text!r}; wanted: whole numbers from 1, separated by commas")
    return [int(part) for part in found]


@checked
def _rates(text: str) -> list[str]:
    if text == "none":
        return []
    found = parts(text)
    for part in found:
        with contextlib.suppress(ValueError):
            if 0 < float(part.removesuffix("%")) < float("inf"):
                continue
        raise ValueError(f"{part!r}; wanted: requests/s (500), a share of the most (70%), or none")
    return found


@checked
def _peers(text: str) -> list[str]:
    found = parts(text)
    for part in found:
        if part not in sweep.PEERS:
            raise ValueError(f"{part!r}; wanted: {', '.join(sweep.PEERS)}")
    return found


@checked
def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise ValueError(f"{text!r}; wanted: WIDTHxHEIGHT in pixels, as 500x375")
    return int(found[1]), int(found[2])


@checked
def _seconds(text: str) -> float:
    found = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0
    if found < 1:
        raise ValueError(f"{text!r}; wanted: seconds, 1 or more")
    return found


def _pair(separator: str, wanted: str) -> Callable[[str], tuple[str, str]]:
    @checked
    def read(text: str) -> tuple[str, str]:
        key, found, value = text.partition(separator)
        if not found or not key.strip():
            raise ValueError(f"{text!r}; wanted: {wanted}")
        return key.strip(), value.strip()

    return read


_header: Callable[[str], tuple[str, str]] = _pair(":", "NAME: VALUE")
_setting: Callable[[str], tuple[str, str]] = _pair("=", "KEY=VALUE, as job_queue_size=1024")
