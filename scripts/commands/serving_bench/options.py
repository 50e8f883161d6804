"""The command line of scripts/bench_serving."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.options import add_server_options

from archive.near_options import Parser
from serving_bench import option_types
from serving_bench.generator_options import add_generator_options
from serving_bench.load_options import add_load_options
from serving_bench.plan import PEERS

DESCRIPTION = """\
Measure what a client gets: start a real TorchServe with the archives on free ports, put it under load, and report
requests/s, latencies, errors, batch sizes, where a request's time goes, and what CPU, memory and GPU it takes.
docs/batching.md explains each figure.

For each archive and each number of workers it runs a closed loop with each number of clients: a client sends its next
request as soon as its last is answered. Then it runs an open loop at --rate: requests come at random moments, even if
earlier ones are unanswered, and latencies count from the moment at which a request was due.

In the same run a handler that does nothing receives and returns as many bytes. Its requests/s are the most that
TorchServe's front end and the load generator can do here; a figure near it tells nothing about the model. After the
servers each archive's engine runs alone on the same inputs, which is the most that serving could reach.

Each line says which point of how many it is, and about how long the rest takes.

Answers under load, and after each point, are compared with those to requests sent alone.
"""
EPILOG = """\
examples:
  scripts/bench_serving model_store/resnet101.mar                              JPEGs of 500x375
  scripts/bench_serving model_store/resnet101.mar --size 1280x960 --workers 4,8 --clients 256
  scripts/bench_serving old=before.mar new=after.mar --tensors uint8 32        two archives side by side
  scripts/bench_serving model_store/bert-large.mar --texts-per-request 32 --accept application/octet-stream
  scripts/bench_serving bert-large.mar --engine-items-per-second docs/benchmarks/bert-large-h200.json:32x128
  scripts/bench_serving model_store/resnet101.mar --setting job_queue_size=1024 --clients 512
  scripts/bench_serving model_store/resnet101.mar --gpus 1,2,4 --servers one,per-gpu --mps off,on
  scripts/bench_serving --install-peers triton,kserve
  scripts/bench_serving model_store/resnet101.mar --peer triton,kserve,ray --workers 1
  scripts/bench_serving --quick model_store/digits.mar model_store/sentences.mar
  scripts/bench_serving --redraw build/serving/latest/resnet101-h200.json      write CSV and page again

The load comes from wrk if it is installed (apt install wrk) or named by --wrk, else from a generator of this project,
which takes about twice the CPU. The open loop always comes from the latter.

Exit status: 0; 1 if an answer was wrong or nothing could be measured, and with --quick if a request failed or batches
did not fill; 2 for a wrong command line; 130 if stopped.
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = Parser(
        prog="scripts/bench_serving",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "archives",
        nargs="*",
        type=option_types.archive,
        metavar="[NAME=]FILE.mar",
        help="what to serve, one after another",
    )
    _add_address(found.add_argument_group("a server that runs already"))
    add_load_options(found.add_argument_group("load (by default what fits the archive: photographs, or texts)"))
    _add_sweep(found.add_argument_group("what is varied (LIST: numbers, separated by commas)"))
    _add_layouts(found.add_argument_group("several GPUs of this machine"))
    _add_peers(found.add_argument_group("peers"))
    add_generator_options(found.add_argument_group("load generator and server"))
    _add_report(found.add_argument_group("report"))
    return found


def _add_address(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--address",
        metavar="URL",
        help="in place of archives: http://127.0.0.1:8080/predictions/NAME of a TorchServe, or the address at which "
        "any other server answers POST. --folder and --ts-config find a TorchServe's token, workers and metrics; "
        "--header sends the token of another server",
    )
    add_server_options(group)


def _add_sweep(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=option_types.counts,
        metavar="LIST",
        help="of the model; with --gpus: per GPU (default: 1,2,4; with --address: unchanged)",
    )
    group.add_argument(
        "--clients",
        type=option_types.counts,
        default=[1, 16, 64, 256],
        metavar="LIST",
        help="with --gpus: per GPU (default: 1,16,64,256)",
    )
    for option in ("--batch-size", "--batch-delay-ms"):
        group.add_argument(
            option, type=option_types.counts, default=[None], metavar="LIST", help="(default: the archive's)"
        )
    group.add_argument(
        "--rate",
        type=option_types.rates,
        default=["70%"],
        metavar="LIST",
        help="rates of the open loop: requests/s, or a share of what the closed loop reached; none: no open loop "
        "(default: 70%%)",
    )


def _add_layouts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpus",
        type=option_types.counts,
        metavar="LIST",
        help="serve with the first N GPUs, for each N of the list. --workers and --clients are per GPU then; a "
        "--rate in requests/s is not (default: one run with all GPUs that are visible, and numbers in all)",
    )
    group.add_argument(
        "--servers",
        type=option_types.servers,
        default=["one"],
        metavar="LIST",
        help="one: one TorchServe for all GPUs; per-gpu: one for each, with its share of the workers; or a number, "
        "also without GPUs. The load is spread evenly over them (default: one)",
    )
    group.add_argument(
        "--mps",
        type=option_types.switches,
        default=[None],
        metavar="LIST",
        help="off, on, or off,on: with and without NVIDIA's MPS, which is started for the run and ended after it "
        "(default: as the machine has it)",
    )


def _add_peers(group: argparse._ArgumentGroup) -> None:
    known = "; ".join(f"{name}: {module.WHAT}" for name, module in PEERS.items())
    group.add_argument(
        "--peer",
        type=option_types.peers,
        default=[],
        metavar="LIST",
        help=f"measure the same network and load through other servers too. {known}. If a package of one is missing, "
        "nothing is started, and the message has the command that installs it. A peer that cannot serve an archive "
        "is skipped, and the report gives the reason",
    )
    group.add_argument(
        "--peer-python",
        action="append",
        default=[],
        type=option_types.peer_python,
        metavar="NAME=PATH",
        help="the Python of another environment that runs this peer; may be repeated (default: the one that "
        "--install-peers has made, else the Python that runs this program)",
    )
    group.add_argument(
        "--install-peers",
        type=option_types.peers,
        default=[],
        metavar="LIST",
        help="make environments for these peers in build/, and measure nothing. They see this environment's packages "
        "behind their own, and leave it as it is",
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--no-noop", action="store_true", help="do not measure the handler that does nothing")
    group.add_argument(
        "--engine",
        choices=("auto", "measure", "none"),
        default="auto",
        help="measure: after the servers, run each archive's engine alone for some seconds, on the same inputs, and "
        "report the share of its speed that serving reaches. auto: do so, unless --quick, --no-noop or "
        "--engine-items-per-second is given (default: auto)",
    )
    group.add_argument(
        "--engine-items-per-second",
        metavar="X|FILE.json[:POINT]",
        help="the engine's own speed on one GPU, in place of measuring it: a number, or the fastest row of a JSON of "
        "scripts/bench_model (at a point: 64, or 32x128; compare equal lengths only)",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file name without a suffix, which no earlier run has used (default: build/serving/TIME/NAME-GPU, TIME "
        "in UTC; build/serving/latest links to the last folder)",
    )
    group.add_argument("--commit", help="for the report, if git cannot tell (default: git describe)")
    group.add_argument(
        "--quick",
        action="store_true",
        help="a short load that checks answers, errors and batching, not times; without archives: the demo's",
    )
    group.add_argument(
        "--redraw", type=Path, metavar="FILE.json", help="write CSV and page of an earlier run's JSON again"
    )
