"""What image classifiers are also run with, to compare: torch.compile, and TensorRT plans of other making."""

from __future__ import annotations

import dataclasses

import torch

from archive import tensorrt_files
from benchmarks import compiling
from handlers.engines import EngineSpec, LoadedEngine, tensorrt, torch_eager


def load_compiled(spec: EngineSpec) -> LoadedEngine:
    """torch.compile of transformers' own network."""
    compiled = compiling.Compiled(torch_eager.load_classifier(spec))

    def run(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = compiled(pixel_values=images).logits.clone()  # (N, classes)
        return logits

    return compiling.engine(run)


def load_static(spec: EngineSpec) -> LoadedEngine:
    """A plan for each bucket, built for exactly that batch; others raise ValueError. Built at each load.

    Raises ValueError where that cannot be done here.
    """
    if why := tensorrt.ENGINE.why_not_here(spec):
        raise ValueError(why)
    runners = {}
    for bucket in spec.buckets:
        alone = dataclasses.replace(spec, buckets=(bucket,))
        runners[bucket] = tensorrt.PlanRunner(tensorrt.build(alone, static=True), (bucket,), spec.device)

    def run(images: torch.Tensor) -> torch.Tensor:
        if len(images) not in runners:
            raise ValueError(f"no static plan for a batch of {len(images)}; there are those of {list(runners)}")
        return runners[len(images)](images)

    return LoadedEngine(run, {"library": "TensorRT", "plans": list(spec.buckets)})


def load_torch2trt(spec: EngineSpec) -> LoadedEngine:
    """The plan that `--converter torch2trt` would package, for the largest bucket alone; converted at each load.

    Raises ValueError where that cannot be done here.
    """
    if spec.device.type != "cuda" or spec.precision != "fp16":
        raise ValueError(f"torch2trt needs an NVIDIA GPU and fp16; got {spec.device} and {spec.precision}")
    if not tensorrt.installed():
        raise ValueError("the package tensorrt is not installed, and torch2trt needs it (pip install tensorrt)")
    largest = dataclasses.replace(spec, buckets=spec.buckets[-1:])
    exact = dataclasses.replace(spec, precision="fp32", device=torch.device("cpu"))
    content = tensorrt_files.through_torch2trt(torch_eager.load_classifier(exact), largest)
    runner = tensorrt.PlanRunner(content, largest.buckets, spec.device)
    return LoadedEngine(runner, {"library": "torch2trt", "profiles": list(largest.buckets)})
