"""Measure how fast the engines run a network, against what the machine can do: what scripts/bench_model does."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

import torch
from benchmarks import clocks, report, resnets, runners
from benchmarks.conditions import ROOT, conditions, slug
from benchmarks.sweep import Ceilings, Point, Sweep, free
from transformers.utils import logging as transformers_logging

from handlers.engines import EngineSpec
from handlers.engines.plans import default_cache

BATCHES = "1,2,4,8,16,32,64,128,256"
COMPILE_BATCHES = "1,32,256"
PLAN_BUCKETS = "1,8,64"
ENGINES = "eager-fp32,eager-fp16,compile-fp16,cudnn-fp16,tensorrt-fp16,torch2trt-fp16"
DESCRIPTION = """\
Time engines of handlers/engines side by side, in one run and at the same batches, and set them against ceilings
measured in that run: a large matmul, a copy in device memory.
"""
EPILOG = """\
examples:
  scripts/bench_model image-classifier                                        all engines, random ResNet-101
  scripts/bench_model image-classifier --engines cudnn-fp16,tensorrt-fp16 --batches 1,64
  scripts/bench_model image-classifier --device cpu --engines eager-fp32 --batches 1,2 --out /tmp/try
  scripts/bench_model picture docs/benchmarks/resnet101-h200.json             draw again
"""
IMAGE = """\
Time a ResNet. Images are on the device before the clock starts: no decoding, no upload, no TorchServe.

--engines takes ENGINE-PRECISION:
  eager-fp32, eager-fp16    transformers' own network, as the engine torch_eager serves it; fp32 without TF32
  compile-fp16              torch.compile of that network, reduce-overhead; only at --compile-batches, as each costs
                            a minute of compiling
  NAME-fp16, NAME-bf16      any other file in handlers/engines: cudnn-fp16, tensorrt-fp16, ...
One that cannot run here is listed with its reason, and the others go on.

Before it is timed, an engine's logits must be finite; their relative error to fp32 (worst image) stands in its row.
Times are p50 and p90 of single calls (20 or more, CUDA events around each) after a warm-up.

Written after every point: OUT.json (conditions, ceilings, rows, what was skipped). At the end: OUT.csv, OUT.png
(needs matplotlib; see the command picture), and a Markdown table on the terminal. In a row:
  share_of_matmul             TFLOP/s over those of a matmul of random 8192 x 8192 matrices in the same precision
  share_of_memory_roofline    least time over measured time; the least time sums, layer by layer, the longer of
                              FLOPs / matmul ceiling and bytes / copy bandwidth, where each convolution reads its
                              input, weight and residual and writes its output once, all else being fused
  peak_mb                     what PyTorch's allocator held at most; memory that TensorRT takes itself is not in it
"""
PICTURE = "Write the CSV and the picture beside a benchmark's JSON again, and print its table. Needs no GPU."


def main(arguments: list[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except KeyboardInterrupt:
        print("\nstopped; what was timed so far is in the JSON", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line; a new kind of model is a new command beside image-classifier."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        prog="scripts/bench_model", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
    )
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    image = commands.add_parser("image-classifier", help="time a ResNet", description=IMAGE, formatter_class=raw)
    image.set_defaults(run=bench_images)
    image.add_argument("--image-size", type=_positive, default=224, metavar="PX", help="(default: %(default)s)")
    _add_shared(image)
    picture = commands.add_parser("picture", help="draw a benchmark's JSON again", description=PICTURE)
    picture.set_defaults(run=redraw)
    picture.add_argument("json", type=Path, metavar="FILE.json")
    return found


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help="folder with config.json and model.safetensors (default: random weights, calibrated on photographs)",
    )
    command.add_argument(
        "--plans",
        type=Path,
        metavar="DIR",
        default=default_cache(),
        help="cache of TensorRT's plans, which take minutes to build and are kept there (default: %(default)s)",
    )
    command.add_argument(
        "--plan-buckets",
        type=_batches,
        default=PLAN_BUCKETS,
        metavar="LIST",
        help="batch sizes that TensorRT optimises for, a minute and more each; a batch runs in the smallest that "
        "holds it, or in parts of the largest (default: %(default)s)",
    )
    command.add_argument("--engines", type=_engines, default=ENGINES, metavar="LIST", help="(default: %(default)s)")
    command.add_argument("--batches", type=_batches, default=BATCHES, metavar="LIST", help="(default: %(default)s)")
    command.add_argument(
        "--compile-batches",
        type=_batches,
        default=COMPILE_BATCHES,
        metavar="LIST",
        help="those of --batches that compile runs (default: %(default)s)",
    )
    command.add_argument("--seconds-per-point", type=float, default=1, metavar="S", help="(default: %(default)s)")
    command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying this out")
    command.add_argument(
        "--out", type=Path, metavar="PATH", help="without a suffix (default: docs/benchmarks/MODEL-GPU)"
    )
    command.add_argument("--commit", help="to note where git cannot tell (default: git describe)")


def bench_images(chosen: argparse.Namespace) -> int:
    """The command image-classifier. Raises ValueError or OSError where nothing can be timed."""
    transformers_logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("handlers").setLevel(logging.INFO)  # building a plan takes minutes, and says how it goes
    device = _device(chosen.device)
    with tempfile.TemporaryDirectory() as passing:
        print(f"model: {chosen.model_dir or 'random weights'}, {device}", flush=True)
        onnx = device.type == "cuda" and any(name.startswith("tensorrt-") for name in chosen.engines)
        folder = resnets.stage(chosen.model_dir, Path(passing), chosen.image_size, onnx)
        spec = spec_of(chosen, "image-classifier", folder, device)
        workload = resnets.workload(spec)
        about = {**conditions(device, chosen.commit), "image_size": chosen.image_size}
        out = chosen.out or ROOT / "docs" / "benchmarks" / f"{workload.model}-{slug(str(about['gpu']))}"
        sweep = Sweep(
            workload,
            spec,
            about,
            measure_ceilings(device, chosen.engines, chosen.seconds_per_point),
            chosen.seconds_per_point,
            save=lambda found: report.write_json(report.beside(out, "json"), report.document(found)),
            say=lambda line: print(line, flush=True),
        )
        return run_all(sweep, chosen, out)


def spec_of(chosen: argparse.Namespace, kind: str, folder: Path, device: torch.device) -> EngineSpec:
    """What engines are told; each one's precision replaces fp32."""
    return EngineSpec(
        kind,
        folder,
        device,
        "fp32",
        image_size=chosen.image_size,
        batch_size=chosen.batches[-1],
        buckets=tuple(chosen.plan_buckets),
        plan_cache=chosen.plans,
    )


def run_all(sweep: Sweep, chosen: argparse.Namespace, out: Path) -> int:
    """Time every engine, and write everything. Exit status 1 where not one could be timed."""
    for name in chosen.engines:
        compiled = runners.split_name(name)[0] == runners.COMPILE
        batches = [batch for batch in chosen.batches if not compiled or batch in chosen.compile_batches]
        if batches:
            sweep.run(name, [Point(batch) for batch in batches])
        else:
            sweep.skip(name, None, ValueError("none of --compile-batches is in --batches"))
    report.write_rest(out, report.document(sweep))
    print(f"\nwritten: {report.beside(out, 'json')} and what is drawn from it")
    return 0 if sweep.rows else 1


def measure_ceilings(device: torch.device, engines: list[str], seconds: float) -> Ceilings:
    """In fp16 always, and in every other precision that an engine shall run."""
    precisions = sorted({"fp16", *(runners.split_name(name)[1] for name in engines)})
    matmul = {precision: clocks.matmul_tflops(device, precision, seconds) for precision in precisions}
    ceilings = Ceilings(matmul, clocks.copy_tb_per_s(device, seconds))
    free(device)
    shown = ", ".join(f"{precision} {value:.4g}" for precision, value in matmul.items())
    print(f"ceilings: matmul {shown} TFLOP/s, copy {ceilings.copy_tb_per_s:.3g} TB/s", flush=True)
    return ceilings


def redraw(chosen: argparse.Namespace) -> int:
    """The command picture."""
    if chosen.json.suffix != ".json":
        raise ValueError(f"{chosen.json}; wanted: the FILE.json of a benchmark")
    report.write_rest(chosen.json.with_suffix(""), json.loads(chosen.json.read_text(encoding="utf-8")))
    return 0


def _device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; --device cpu tries this out, at a CPU's speed")
    return torch.device(asked, 0) if asked == "cuda" else torch.device("cpu")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: a whole number, 1 or more")
    return int(text)


def _batches(text: str) -> list[int]:
    return sorted({_positive(part.strip()) for part in text.split(",")})


def _engines(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    try:
        for name in names:
            runners.split_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


if __name__ == "__main__":
    sys.exit(main())
