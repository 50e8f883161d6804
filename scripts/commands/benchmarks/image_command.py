"""The command image-classifier of scripts/bench_model."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pictures
from argument_types import parts, positive

from benchmarks import engine_loading, shared_command
from benchmarks.conditions import conditions
from benchmarks.points import Point
from benchmarks.shared_command import FIGURES
from handlers.engines import EngineSpec

BATCHES = "1,2,4,8,16,32,64,128,256"
COMPILE_BATCHES = "1,64,256"
IMAGE_SIZE = 224
PLAN_BUCKETS = "1,8,64"
ENGINES = "eager-fp32,eager-fp16,compile-fp16,cudnn-fp16,tensorrt-fp16,torch2trt-fp16"
FIGURES_OF_IMAGES = FIGURES.format(layers="each convolution reads its", reads="input, weight and residual and writes")
DESCRIPTION = f"""\
Time a ResNet. Images are on the device before the clock starts: no decoding, no upload, no TorchServe.

--engines takes ENGINE-PRECISION:
  eager-fp32, eager-fp16    transformers' own network, as the engine torch_eager serves it; fp32 without TF32
  compile-fp16              torch.compile of that network, reduce-overhead; only at --compile-batches, as each costs
                            a minute of compiling
  torch2trt-fp16            TensorRT, its plan made by torch2trt instead of from ONNX, for the largest of
                            --plan-buckets alone; converted in each run, which takes a minute or two
  tensorrt-static-fp16      TensorRT from ONNX, with a plan for each of --plan-buckets that runs this batch alone, in
                            place of one plan with a profile for each; built in each run
  NAME-fp16, NAME-bf16      any other file in handlers/engines: cudnn-fp16, tensorrt-fp16, ...
  onnxruntime-fp32          ONNX Runtime, with --device cpu
An engine that cannot run here is skipped with the reason, and the others go on.

Before an engine is timed, its logits must be finite. Its row has their relative error to fp32 (worst image).
Times are p50 and p90 of single calls (20 or more, CUDA events around each) after a warm-up.

{FIGURES_OF_IMAGES}"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument(
        "--image-size", type=positive, default=IMAGE_SIZE, metavar="PX", help="(default: %(default)s)"
    )
    shared_command.add_shared(command, ENGINES, "random weights, calibrated on photographs")
    command.add_argument(
        "--plan-buckets",
        type=_batches,
        default=PLAN_BUCKETS,
        metavar="LIST",
        help="batch sizes that TensorRT optimises for, a minute and more each; a batch runs in the smallest that "
        "holds it, or in parts of the largest (default: %(default)s)",
    )
    command.add_argument("--batches", type=_batches, default=BATCHES, metavar="LIST", help="(default: %(default)s)")
    command.add_argument(
        "--compile-batches",
        type=_batches,
        default=COMPILE_BATCHES,
        metavar="LIST",
        help="those of --batches that compile runs (default: %(default)s)",
    )


def _batches(text: str) -> list[int]:
    return sorted({positive(part) for part in parts(text)})


def run(chosen: argparse.Namespace) -> int:
    """Time the engines; the exit status. Raises ValueError or OSError if nothing can be timed."""
    from benchmarks import resnets  # needs what is installed; --help does not

    shared_command.be_quiet()
    engine_loading.check_names(chosen.engines, "image-classifier")
    device = shared_command.device_of(chosen.device)
    with tempfile.TemporaryDirectory() as passing:
        print(f"model: {chosen.model_dir or 'random weights'}, {device}", flush=True)
        pictures.say_if_missing()
        onnx = device.type == "cuda" and any(name.startswith("tensorrt-") for name in chosen.engines)
        folder = resnets.model_folder(chosen.model_dir, Path(passing), chosen.image_size, onnx)
        spec = EngineSpec(
            "image-classifier",
            folder,
            device,
            "fp32",  # each engine's own precision replaces it
            image_size=chosen.image_size,
            batch_size=chosen.batches[-1],
            buckets=tuple(chosen.plan_buckets),
            plan_cache=chosen.plans,
        )
        workload = resnets.workload(spec)
        about = {**conditions(device, chosen.commit), "image_size": chosen.image_size}
        sweep, out = shared_command.sweep_of(
            chosen,
            workload,
            spec,
            about,
            chosen.engines,
            full={
                "engines": shared_command.names(ENGINES),
                "batches": _batches(BATCHES),
                "compile_batches": _batches(COMPILE_BATCHES),
            },
            defaults={"image_size": IMAGE_SIZE, "plan_buckets": _batches(PLAN_BUCKETS)},
        )
        points = [Point(batch) for batch in chosen.batches]
        fewer = {
            engine_loading.COMPILE: ("--compile-batches", [Point(batch) for batch in chosen.compile_batches]),
            engine_loading.STATIC: ("--plan-buckets", [Point(batch) for batch in chosen.plan_buckets]),
        }
        shared_command.run_engines(sweep, chosen.engines, points, fewer)
        return shared_command.finish(sweep, out)
