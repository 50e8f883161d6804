"""What the commands of scripts/bench_model share: options, how those are read, and the run itself."""

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

SECONDS = 1  # of a point

FIGURES = """\
Written after every point: OUT.json (conditions, ceilings, rows, what was skipped). At the end: OUT.csv, OUT.png
(needs matplotlib; see the command picture), and a Markdown table on the terminal. In a row:
  share_of_matmul             TFLOP/s over those of a matmul of random 8192 x 8192 matrices (on a CPU 512 x 512) in
                              the same precision
  share_of_memory_roofline    least time over measured time; the least time sums, layer by layer, the longer of
                              FLOPs / matmul ceiling and bytes / copy bandwidth, where {layers}
                              {reads} its output once; all else
                              is taken as fused
  peak_mb                     device memory that the engine and the point took, CUDA graphs and TensorRT included
"""


def add_shared(command: argparse.ArgumentParser, engines: str, random_weights: str) -> None:
    """The options that every kind of model has."""
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
        help="without a suffix (default: docs/benchmarks/MODEL-GPU, and -part behind it for a run of less than these "
        "defaults, or of others)",
    )
    command.add_argument("--commit", help="to note where git cannot tell (default: git describe)")


@checked
def names(text: str) -> list[str]:
    """Engines, each with a precision."""
    found = parts(text)
    for name in found:
        engine_loading.split_name(name)
    return found


def be_quiet() -> None:
    """Progress bars out; building a plan takes minutes, and says how it goes."""
    transformers_logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("handlers").setLevel(logging.INFO)


def device_of(asked: str) -> torch.device:
    """Raises ValueError where there is no GPU and one is asked for."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; --device cpu tries this out, at a CPU's speed")
    return torch.device(asked, 0) if asked == "cuda" else torch.device("cpu")


def sweep_of(
    chosen: argparse.Namespace,
    workload: Workload,
    spec: EngineSpec,
    about: dict[str, object],
    engines: Sequence[str],
    whole: Mapping[str, Sequence[object]],
    same: Mapping[str, object],
) -> tuple[Sweep, Path]:
    """A sweep with its ceilings measured, and OUT. engines: whose precisions need ceilings; the rest: see out_of."""
    out = chosen.out or out_of(chosen, f"{workload.model}-{slug(str(about['gpu']))}", whole, same)
    sweep = Sweep(
        workload,
        spec,
        about,
        measure_ceilings(spec.device, engines, chosen.seconds_per_point),
        chosen.seconds_per_point,
        save=lambda found: results.write_json(results.beside(out, "json"), results.document(found)),
        say=lambda line: print(line, flush=True),
    )
    return sweep, out


def out_of(
    chosen: argparse.Namespace, name: str, whole: Mapping[str, Sequence[object]], same: Mapping[str, object]
) -> Path:
    """Where results of `name` go; those of less than `whole`, or of other settings than `same`, beside the published.

    Both by option. Of weights of somebody's own as well.
    """
    asked = vars(chosen)
    less = chosen.seconds_per_point < SECONDS or chosen.model_dir is not None
    less = less or any(set(all_of) - set(asked[key]) for key, all_of in whole.items())
    less = less or any(asked[key] != value for key, value in same.items())
    return ROOT / "docs" / "benchmarks" / f"{name}{'-part' if less else ''}"


def measure_ceilings(device: torch.device, engines: Sequence[str], seconds: float) -> Ceilings:
    """In fp16 always, and in every other precision that an engine shall run; without fp8 where PyTorch lacks it."""
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
    """Time every engine. limited: by engine, the option with the points that it runs, and those points."""
    for name in engines:
        option, allowed = limited.get(engine_loading.split_name(name)[0], ("", points))
        its_points = [point for point in points if point in allowed]
        if its_points:
            sweep.run(name, its_points)
        else:
            sweep.skip(name, None, ValueError(f"none of {option} is among the points of this run"))


def finish(sweep: Sweep, out: Path) -> int:
    """Write everything. Exit status 1 where not one engine could be timed."""
    report.write_rest(out, results.document(sweep))
    print(f"\nwritten: {results.beside(out, 'json')} and what is drawn from it")
    return 0 if sweep.rows else 1
