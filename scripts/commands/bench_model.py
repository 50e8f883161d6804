"""Measure how fast the engines run a network, and how fast this machine could: what scripts/bench_model does."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import image_command, report, text_command

from archive.near_options import Parser

DESCRIPTION = """\
Time the engines of handlers/engines, and other ways to run the same network, in one run and on the same inputs.
Compare them with two ceilings of the machine, measured in the same run: a large matmul, and a copy in device memory.
"""
EPILOG = """\
examples:
  scripts/bench_model image-classifier                                        all engines, random ResNet-101
  scripts/bench_model image-classifier --engines cudnn-fp16,tensorrt-fp16 --batches 1,64
  scripts/bench_model image-classifier --device cpu --engines eager-fp32,onnxruntime-fp32 --batches 1,2
  scripts/bench_model text-encoder                                            all engines, random BERT-Large
  scripts/bench_model text-encoder --engines hf-sdpa-fp16,fused-fp16 --points 32x128,squad
  scripts/bench_model text-encoder --engines fused-fp16 --points 32x384 --kernels fused-fp16:32x384
  scripts/bench_model picture docs/benchmarks/resnet101-h200.json             draw the picture again

Exit status: 0; 1 if nothing could be timed, with the reason; 2 for a wrong command line; 130 if stopped.
"""
PICTURE = "Write CSV and picture of a benchmark's JSON again, and print its table. This needs no GPU."


def main(arguments: list[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except KeyboardInterrupt:
        print("\nstopped; if any point was timed, OUT.json has it (see --out)", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line. A new kind of model is one more command."""
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="scripts/bench_model", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for name, what, command in (
        ("image-classifier", "time a ResNet", image_command),
        ("text-encoder", "time a BERT", text_command),
    ):
        added = commands.add_parser(name, help=what, description=command.DESCRIPTION, formatter_class=raw)
        added.set_defaults(run=command.run)
        command.add_options(added)
    picture = commands.add_parser("picture", help="draw a benchmark's JSON again", description=PICTURE)
    picture.set_defaults(run=redraw)
    picture.add_argument("json", type=Path, metavar="FILE.json")
    return found


def redraw(chosen: argparse.Namespace) -> int:
    """Run the command picture."""
    if chosen.json.suffix != ".json":
        raise ValueError(f"{chosen.json}; wanted: the FILE.json of a benchmark")
    report.write_rest(chosen.json.with_suffix(""), json.loads(chosen.json.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
