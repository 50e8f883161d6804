"""Measure what a client gets from TorchServe, load generator included: what scripts/bench_serving does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from serving_bench import command
from serving_bench.options import parser


def main(arguments: Sequence[str] | None = None) -> int:
    return command.guarded(parser().parse_args(arguments), command.run)


if __name__ == "__main__":
    sys.exit(main())
