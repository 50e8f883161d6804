"""The command text-encoder of scripts/bench_model."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pictures
from argument_types import checked, parts, positive

from benchmarks import engine_loading, shared_command
from benchmarks.conditions import conditions
from benchmarks.points import Point, parse
from benchmarks.shared_command import FIGURES
from handlers.engines import DTYPES

TOKEN_BUDGET = 0  # as of the setting: what each engine runs fastest
POINTS = "1x128,8x128,32x128,64x128,32x384,64x384,squad,half,short8"
COMPILE_POINTS = "1x128,32x128,64x384"
ENGINES = ",".join(
    [
        "hf-eager-fp32,hf-eager-fp16,hf-sdpa-fp16,compile-fp16,torch-fastpath-fp16,tensorrt-fp16,fused-fp16",
        *(["fused-fp8"] if "fp8" in DTYPES else []),
    ]
)
FIGURES_OF_TEXTS = FIGURES.format(
    layers="each linear layer reads its", reads="input, weight and residual, attention its QKV, and writes"
)
DESCRIPTION = f"""\
Time a BERT-style encoder, embeddings to token vectors (the task embeddings without pooling). Token ids are on the
device before the clock starts: no tokenizing, no upload, no TorchServe.

--engines takes ENGINE-PRECISION:
  hf-eager-fp32, -fp16      transformers' own encoder, attention written out as matmul, softmax, matmul; fp32 without
                            TF32
  hf-sdpa-fp16              transformers' own with scaled_dot_product_attention: what the engine torch_eager serves
                            (eager-fp16 is that engine by its own name; it is not hf-eager)
  compile-fp16              torch.compile of hf-sdpa's network, reduce-overhead; only at --compile-points, as each
                            costs a minute of compiling, and only where all lengths are one
  torch-fastpath-fp16       nn.TransformerEncoder's inference fast path with the same weights; its nested tensors
                            leave the padding out
  tensorrt-fp16             TensorRT, a plan for each shape of --plan-points; each takes a minute or more to build
                            the first time, and is kept in --plans
  NAME-fp16, NAME-bf16      any file in handlers/engines that runs texts: fused-fp16, ...; also fused-fp8, the
                            network calibrated on random tokens where its folder has no fp8.json
  onnxruntime-fp32          ONNX Runtime, with --device cpu
An engine that cannot run here is skipped with the reason, and the others go on.

--points takes BATCHxLENGTH, that many sequences of that many tokens, in one call; and mixes of lengths:
  squad     256 sequences as of SQuAD: quantiles of a lognormal, 173 tokens in the mean, at most 384
  half      64 sequences of 3 to 381 tokens, evenly: padded to the longest, half would be padding
  short8    8 sequences of 10 to 128 tokens, evenly
A mix runs as the handler runs a batch: sorted by length, cut into micro-batches of at most --token-budget tokens.
By default that is 49,152 for fused on a GPU, and 16,384 for all others. Engines that need padding pad each
micro-batch to its own longest sequence, as a careful user would, and the time for padding counts. FLOPs, and so
TFLOP/s, count real tokens only.

Before an engine is timed, its vectors must be finite. Its row has their relative error (worst token) to transformers'
own network, eager and in fp32. Times are p50 and p90 of a whole point (20 runs or more, CUDA events around
each) after a warm-up. fp8 is set against an fp8 matmul in all layers, though attention runs in half precision.

{FIGURES_OF_TEXTS}
--kernels adds where the time of an engine at a point goes: the profiler's sums by kernel, what each part of a layer
would need at least, and its matrix products by themselves, as PyTorch multiplies them under the same steady load. It
runs after everything was timed. A GPU at its power limit clocks lower than in the first tenths of a second:
--seconds-per-point 0.1 shows that other speed.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    shared_command.add_shared(command, ENGINES, "a BERT-Large with random weights")
    command.add_argument("--points", type=_points, default=POINTS, metavar="LIST", help="(default: %(default)s)")
    command.add_argument(
        "--compile-points",
        type=_points,
        default=COMPILE_POINTS,
        metavar="LIST",
        help="those of --points that compile runs (default: %(default)s)",
    )
    command.add_argument(
        "--plan-points",
        type=_points,
        metavar="LIST",
        help="those of --points that tensorrt runs; a mix needs a plan for each micro-batch (default: all)",
    )
    command.add_argument(
        "--token-budget",
        type=positive,
        default=TOKEN_BUDGET,
        metavar="TOKENS",
        help="of a micro-batch of a mix (default: what each engine runs fastest, as the handler does)",
    )
    command.add_argument(
        "--kernels", type=_profiled, default=[], metavar="LIST", help="ENGINE-PRECISION:POINT, as fused-fp16:32x384"
    )


@checked
def _points(text: str) -> list[Point]:
    return [parse(part) for part in parts(text)]


@checked
def _profiled(text: str) -> list[tuple[str, Point]]:
    found = []
    for part in parts(text):
        name, colon, point = part.partition(":")
        if not colon:
            raise ValueError(f"{part!r}; wanted: ENGINE-PRECISION:POINT, as fused-fp16:32x384")
        engine_loading.split_name(name)
        found.append((name, parse(point)))
    return found


def run(chosen: argparse.Namespace) -> int:
    """Time the engines; the exit status. Raises ValueError or OSError if nothing can be timed."""
    from benchmarks import kernel_times, texts  # need what is installed; --help does not

    shared_command.be_quiet()
    profiled = [name for name, _ in chosen.kernels]
    engine_loading.check_names([*chosen.engines, *profiled], "text-encoder")
    device = shared_command.device_of(chosen.device)
    points = list(dict.fromkeys([*chosen.points, *(point for _, point in chosen.kernels)]))
    with tempfile.TemporaryDirectory() as passing:
        print(f"model: {chosen.model_dir or 'random weights'}, {device}", flush=True)
        pictures.say_if_missing()
        fp8 = any(name.endswith("-fp8") for name in [*chosen.engines, *profiled])
        spec = texts.spec_of(texts.model_folder(chosen.model_dir, Path(passing), fp8), device, points, chosen.plans)
        workload = texts.workload(spec, points, chosen.token_budget)
        about = {
            **conditions(device, chosen.commit),
            "token_budget": chosen.token_budget,
            "mixes": {point.mix: workload.about(point) for point in points if point.mix},
        }
        full: dict[str, Sequence[object]] = {
            "engines": shared_command.names(ENGINES),
            "points": _points(POINTS),
            "compile_points": _points(COMPILE_POINTS),
        }
        defaults = {"token_budget": TOKEN_BUDGET, "plan_points": None}
        sweep, out = shared_command.sweep_of(
            chosen, workload, spec, about, [*chosen.engines, *profiled], full, defaults
        )
        limited = {
            engine_loading.COMPILE: ("--compile-points", chosen.compile_points),
            engine_loading.TENSORRT: ("--plan-points", chosen.plan_points or chosen.points),
        }
        shared_command.run_engines(sweep, chosen.engines, chosen.points, limited)
        for name, point in chosen.kernels:
            kernel_times.measure(sweep, workload, name, point)
        return shared_command.finish(sweep, out)
