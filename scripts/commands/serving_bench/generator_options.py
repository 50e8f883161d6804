"""The options that choose how the load is made, and the generators that they mean."""

from __future__ import annotations

import argparse
import os

from argument_types import positive

from serving_bench import option_types, wrk_generator
from serving_bench.generator import Generator
from serving_bench.stream_generator import StreamGenerator


def add_generator_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that `generators` reads, the time of a point, and the server's settings meanwhile."""
    group.add_argument(
        "--seconds",
        type=option_types.point_seconds,
        default=5.0,
        metavar="S",
        help="time of a point (default: %(default)g)",
    )
    group.add_argument(
        "--warm-up",
        type=option_types.point_seconds,
        default=2.0,
        metavar="S",
        help="time of the load before a point (default: %(default)g)",
    )
    group.add_argument(
        "--generator", choices=("auto", "wrk", "streams"), default="auto", help="(default: wrk if it is installed)"
    )
    group.add_argument("--wrk", metavar="PATH", help="the program wrk (default: from the PATH)")
    group.add_argument(
        "--generator-threads",
        type=positive,
        metavar="N",
        help="threads of wrk, or processes of streams (default: a quarter of the cores; open loop: half of them)",
    )
    group.add_argument(
        "--setting",
        action="append",
        default=[],
        type=option_types.setting,
        metavar="KEY=VALUE",
        help="a setting for config.properties, in place of the project's; may be repeated",
    )


def generators(chosen: argparse.Namespace) -> tuple[Generator, StreamGenerator]:
    """Those of the closed and of the open loop. Raises ValueError if wrk is asked for and missing.

    Answers come in batches, and a process that reads a batch of them sends late. So the open loop gets more of them:
    9,800 JPEGs/s from 4 processes were late by 36 ms at the 99th percentile, 10,200 from 20 processes by 1 ms
    (serving-resnet101-peers-h100.json, serving-resnet101-gpus-h200.json).
    """
    cores = len(os.sched_getaffinity(0))
    threads = chosen.generator_threads or max(1, cores // 4)
    path = wrk_generator.find(chosen.wrk)
    if chosen.generator == "wrk" and path is None:
        raise ValueError("wrk is not installed. On Debian and Ubuntu: apt install wrk; or name it: --wrk PATH")
    open_loop = StreamGenerator(chosen.generator_threads or max(1, cores // 2))
    if path is None or chosen.generator == "streams":
        return StreamGenerator(threads), open_loop
    return wrk_generator.WrkGenerator(path, threads), open_loop
