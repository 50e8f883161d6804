"""What the commands of scripts/bench_model share: options, and the run itself."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from argument_types import checked, parts
from transformers.utils import logging as transformers_logging

from benchmarks import engine_loading, report, results, timing
from benchmarks.conditions import ROOT, slug
from benchmarks.points import Point
from benchmarks.sweep import Ceilings, Sweep, Workload, free
from handlers.engines import EngineSpec
from handlers.engines.plans import default_cache

SECONDS = 1  # time of a point

FIGURES = """\
OUT.json (conditions, ceilings, rows, what was skipped) is written after every point. At the end OUT.csv and OUT.png
are written (OUT.png needs matplotlib; see the command picture), and a Markdown table is printed. Columns of a row:
  share_of_matmul             TFLOP/s divided by those of a matmul of random 8192 x 8192 matrices (on a CPU
                              512 x 512) in the same precision
  share_of_memory_roofline    least time over measured time; the least time sums, layer by layer, the longer of
                              FLOPs / matmul ceiling and bytes / copy bandwidth, where {layers}
                              {reads} its output once; all else
                              is taken as fused
  peak_mb                     device memory that the engine and the point used, with CUDA graphs and TensorRT
"""


def add_shared(command: argparse.ArgumentParser, engines: str, random_weights: str) -> None:
    """Add the options that every kind of model has."""
    command.add_argument(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help=f"folder with config.json and model.safetensors (default: {random_weights})",
    )
    command.add_argument(
        "--plans",
        type=Path,
        metavar="DIR",
        default=default_cache(),
        help="cache of TensorRT's plans, which take minutes to build and are kept there (default: %(default)s)",
    )
    command.add_argument("--engines", type=names, default=engines, metavar="LIST", help="(default: %(default)s)")
    command.add_argument(
        "--seconds-per-point", type=float, default=SECONDS, metavar="S", help="(default: %(default)s)"
    )
    command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying this out")
    command.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file name without a suffix (default: docs/benchmarks/MODEL-GPU; MODEL-GPU-part for a run with less "
        "than these defaults, or with others)",
    )
    command.add_argument("--commit", help="for the report, if git cannot tell (default: git describe)")


@checked
def names(text: str) -> list[str]:
    """Engines with their precisions: "cudnn-fp16,eager-fp32"."""
    found = parts(text)
    for name in found:
        engine_loading.split_name(name)
    return found


def be_quiet() -> None:
    """Switch off progress bars. Building a plan takes minutes, so its log is shown."""
    transformers_logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("handlers").setLevel(logging.INFO)


def device_of(asked: str) -> torch.device:
    """The device. Raises ValueError if a GPU is asked for and there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; --device cpu tries this out, at a CPU's speed")
    return torch.device(asked, 0) if asked == "cuda" else torch.device("cpu")


def sweep_of(
    chosen: argparse.Namespace,
    workload: Workload,
    spec: EngineSpec,
    about: dict[str, object],
    engines: Sequence[str],
    full: Mapping[str, Sequence[object]],
    defaults: Mapping[str, object],
) -> tuple[Sweep, Path]:
    """A sweep, its ceilings measured, and OUT.

    engines: their precisions need ceilings. full, defaults: as in out_of.
    """
    out = chosen.out or out_of(chosen, f"{workload.model}-{slug(str(about['gpu']))}", full, defaults)
    sweep = Sweep(
        workload,
        spec,
        about,
        measure_ceilings(spec.device, engines, chosen.seconds_per_point),
        chosen.seconds_per_point,
        save=lambda found: results.write_json(results.with_suffix(out, "json"), results.document(found)),
        show=lambda line: print(line, flush=True),
    )
    return sweep, out


def out_of(
    chosen: argparse.Namespace, name: str, full: Mapping[str, Sequence[object]], defaults: Mapping[str, object]
) -> Path:
    """The path without a suffix at which results of `name` are written.

    A run of a user's own weights, of less than `full` or with other settings than `defaults` (both by option) ends in
    -part, so that it does not replace a published result.
    """
    asked = vars(chosen)
    partial = chosen.seconds_per_point < SECONDS or chosen.model_dir is not None
    partial = partial or any(set(all_of) - set(asked[key]) for key, all_of in full.items())
    partial = partial or any(asked[key] != value for key, value in defaults.items())
    return ROOT / "docs" / "benchmarks" / f"{name}{'-part' if partial else ''}"


def measure_ceilings(device: torch.device, engines: Sequence[str], seconds: float) -> Ceilings:
    """Measure the ceilings in fp16, and in every precision of an engine; fp8 is left out if PyTorch lacks it."""
    free(device)
    precisions = sorted({"fp16", *(engine_loading.split_name(name)[1] for name in engines)})
    matmul = {}
    for precision in precisions:
        try:
            matmul[precision] = timing.matmul_tflops(device, precision, seconds)
        except (AttributeError, RuntimeError, ValueError) as error:
            if precision != "fp8":
                raise
            print(f"no matmul in fp8: {str(error).splitlines()[0]}", flush=True)
    ceilings = Ceilings(matmul, timing.copy_tb_per_s(device, seconds))
    free(device)
    shown = ", ".join(f"{precision} {value:.4g}" for precision, value in matmul.items())
    print(f"ceilings: matmul {shown} TFLOP/s, copy {ceilings.copy_tb_per_s:.3g} TB/s", flush=True)
    return ceilings


def run_engines(
    sweep: Sweep, engines: Sequence[str], points: Sequence[Point], limited: Mapping[str, tuple[str, Sequence[Point]]]
) -> None:
    """Time every engine. limited: by engine that runs fewer points, the option that names them, and the points."""
    for name in engines:
        option, allowed = limited.get(engine_loading.split_name(name)[0], ("", points))
        its_points = [point for point in points if point in allowed]
        if its_points:
            sweep.run(name, its_points)
        else:
            sweep.skip(name, None, ValueError(f"none of {option} is among the points of this run"))


def finish(sweep: Sweep, out: Path) -> int:
    """Write everything. Exit status 1 if no engine could be timed."""
    report.write_rest(out, results.document(sweep))
    print(f"\nwritten: {results.with_suffix(out, 'json')} and what is drawn from it")
    return 0 if sweep.rows else 1
