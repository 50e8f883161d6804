"""CNNs through NVIDIA TensorRT: one plan with an optimization profile for each batch bucket.

The network is the archive's `model.onnx` in half precision, a ResNet's with BatchNorm folded; the plan travels in the
archive or is built at first load (handlers.engines.plans). A batch runs in the smallest profile that holds it, at its
own size: nothing is padded. It runs on the current stream and on tensors' own memory: a plan from ONNX reads images
as they lie in channels_last, (N, S, S, 3). One that torch2trt made reads (N, 3, S, S), and costs a copy of the batch.

Source: the TensorRT developer guide, "Working with Dynamic Shapes" and "Strongly Typed Networks". TensorRT 8.6
takes the precision from a builder flag; from 10 on it comes from the network's own types. Tried on 8.6 only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from handlers.engines import Engine, EngineSpec, plans
from handlers.engines.graphs import bucket_of

KINDS = ("image-classifier",)
RANK = 20

ONNX, PLAN_FOLDER = "model.onnx", "plan"
INPUT, OUTPUT = "images", "logits"
CHANNELS = 3
WORKSPACE_BYTES = 4 << 30
SECONDS_A_PROFILE = 95  # ResNet-101 with TensorRT 8.6 on an H200, without a timing cache

logger = logging.getLogger(__name__)


def installed() -> bool:
    """Whether TensorRT's Python package is there, without importing it."""
    return importlib.util.find_spec("tensorrt") is not None


@functools.cache
def broken() -> str | None:
    """Why the installed package cannot be imported, or None."""
    try:
        _tensorrt()
    except Exception as error:  # its libraries' own: a loader's OSError, a driver's RuntimeError
        return f"the package tensorrt is installed and cannot be imported ({type(error).__name__}: {error})"
    return None


def objection(spec: EngineSpec) -> str | None:
    """Why not: it needs an NVIDIA GPU, fp16, TensorRT, and an archive that carries the network as ONNX."""
    if spec.device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, and the device is {spec.device}"
    if why := unfit(spec):
        return why
    if not installed():
        return "the package tensorrt is not installed: pip install tensorrt, in the release that fits the driver"
    if why := broken():
        return why
    if not (spec.model_dir / ONNX).is_file():
        return f"the archive carries no {ONNX}; package it with --engine tensorrt"
    return None


def unfit(spec: EngineSpec) -> str | None:
    """Why it would run `spec` on no machine."""
    return None if spec.precision == "fp16" else f"it runs fp16, and the precision is {spec.precision}"


def ready(spec: EngineSpec) -> bool:
    """Whether a plan that fits lies in the archive or the cache, so that loading builds nothing."""
    return unready(spec) is None


def unready(spec: EngineSpec) -> str | None:
    """Why loading would take minutes, or None."""
    wanted, archived = fingerprint(spec), spec.model_dir / PLAN_FOLDER
    why = f"the archive carries {ONNX} without a plan"
    for folder in (spec.plan_cache / wanted.key, archived):
        try:
            if folder.is_dir():
                plans.check(folder, wanted)
                return None
        except plans.PlanError as error:
            why = str(error) if folder == archived else why
    return f"{why}, and none that fits is in the cache; engine: tensorrt builds one, which takes minutes, once"


def refusal(spec: EngineSpec) -> str | None:
    """Why nothing may serve in its place: the archive's plan is for another machine, and onMismatch is refuse."""
    archived = spec.model_dir / PLAN_FOLDER
    if spec.on_mismatch != "refuse" or not archived.is_dir():
        return None
    try:
        plans.check(archived, fingerprint(spec))
    except plans.PlanError as error:
        return f"{error}. onMismatch is refuse; with rebuild in model-config.yaml auto takes another engine"
    return None


def load(spec: EngineSpec) -> Engine:
    """Find or build the plan, and deserialise it. Raises plans.PlanError, a ValueError that names both sides."""
    from handlers import networks

    wanted = fingerprint(spec)
    plan = plans.obtain(spec.model_dir / PLAN_FOLDER, spec.plan_cache, wanted, spec.on_mismatch, lambda: build(spec))
    runner = PlanRunner(plan.content, spec.buckets, spec.device)
    details: dict[str, object] = {
        "library": f"TensorRT {wanted.tensorrt}",
        "network": networks.title(spec.model_dir),
        "plan": plan.source,
        "profiles": list(spec.buckets),
        "onnx": f"sha256:{wanted.onnx}",
    }
    return Engine(runner, details)


def fingerprint(spec: EngineSpec) -> plans.Fingerprint:
    """What a plan for `spec` on this machine depends on."""
    properties = torch.cuda.get_device_properties(spec.device)
    return plans.Fingerprint(
        tensorrt=_tensorrt().__version__,
        cuda=str(torch.version.cuda),
        compute_capability=f"{properties.major}.{properties.minor}",
        gpu=properties.name,
        onnx=plans.file_digest(spec.model_dir / ONNX),
        buckets=spec.buckets,
        image_size=spec.image_size,
        precision=spec.precision,
    )


def input_shape(count: int, spec: EngineSpec) -> tuple[int, int, int, int]:
    """Of a batch as the ONNX network reads it."""
    return count, spec.image_size, spec.image_size, CHANNELS


def build(spec: EngineSpec, static: bool = False) -> bytes:
    """Build the plan from the ONNX network, one profile a bucket, saying how it goes. Raises plans.PlanError.

    static: without profiles, for batches of exactly the largest bucket; for comparison, in scripts/bench_model.
    """
    trt = _tensorrt()
    with torch.cuda.device(spec.device):
        said = _Said(trt)
        builder = trt.Builder(said.logger)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, said.logger)
        if not parser.parse((spec.model_dir / ONNX).read_bytes()):
            errors = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
            raise plans.PlanError(f"TensorRT cannot read {ONNX}: {errors}")
        config = _config(trt, builder)
        if static:
            network.get_input(0).shape = input_shape(spec.buckets[-1], spec)
        else:
            _add_profiles(builder, config, spec)
        with _timing_cache(trt, config, spec, said), _progress(len(spec.buckets)):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise plans.PlanError(f"TensorRT built no plan: {said.last or 'it gave no reason'}")
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    """Strongly typed where TensorRT has that (10 and newer), explicit batch where it still has to be asked (8.6)."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if name in known:
            return 1 << int(known[name])
    return 0


def _config(trt: Any, builder: Any) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__ and hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
    return config


def _add_profiles(builder: Any, config: Any, spec: EngineSpec) -> None:
    smallest = 1
    for bucket in spec.buckets:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *(input_shape(count, spec) for count in (smallest, bucket, bucket)))
        config.add_optimization_profile(profile)
        smallest = bucket + 1


@contextlib.contextmanager
def _timing_cache(trt: Any, config: Any, spec: EngineSpec, said: _Said) -> Iterator[None]:
    """Kernel timings of earlier builds on this GPU with this TensorRT; a second build takes seconds with them.

    TensorRT 8.6 may take only those of the same process: "Myelin error from unknown graph", of ResNet-101's on an
    H200; known from 8.5, and gone with 10.2 (github.com/lightvector/KataGo, issues 739 and 945).
    """
    gpu = hashlib.sha256(torch.cuda.get_device_name(spec.device).encode()).hexdigest()[:12]
    path = spec.plan_cache / f"timing-{trt.__version__}-{gpu}"
    kept = path.read_bytes() if path.is_file() else b""
    said.last = ""
    taken = _attach(config, kept)
    if kept and (said.last or not taken):
        logger.warning(
            "TensorRT %s does not take the timings that a build before this one kept in %s; this one takes as long "
            "as the first, and replaces them",
            trt.__version__,
            path,
        )
    if kept and not taken:
        _attach(config, b"")  # or there would be nothing to keep behind this build, and the old ones would stay
    said.last = ""  # nothing that a failed build is to be blamed on
    yield
    learnt = config.get_timing_cache()
    if learnt is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        plans.replace(path, bytes(learnt.serialize()))
    except OSError as error:  # the plan is built; the next build is merely slower
        logger.warning("TensorRT's timings cannot be kept in %s: %s", path, error)


def _attach(config: Any, timings: bytes) -> bool:
    """Whether TensorRT takes a cache of these; of none, it begins one."""
    cache = config.create_timing_cache(timings)
    return cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))


@contextlib.contextmanager
def _progress(profiles: int) -> Iterator[None]:
    """A line in the log every 15 s: building is silent otherwise, and takes minutes."""
    done, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(15):
            logger.info("building the TensorRT plan: %.0f s so far", time.monotonic() - started)

    estimate = profiles * SECONDS_A_PROFILE
    logger.info("building a TensorRT plan with %d profiles; up to about %d s the first time", profiles, estimate)
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    logger.info("TensorRT plan built in %.0f s", time.monotonic() - started)


class _Said:
    """TensorRT's own log lines, errors to ours; the last one explains a failed build."""

    def __init__(self, trt: Any) -> None:
        said = self
        self.last = ""

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.ERROR):
                    said.last = message
                    logger.error("TensorRT: %s", message)

        self.logger = Logger()


class PlanRunner:
    """A deserialised plan: (N, 3, S, S) fp16 -> logits (N, classes) fp16, on the current stream, in N's own size.

    Images that lie as the plan reads them are not copied: in channels_last, if it is one from ONNX.
    """

    def __init__(self, content: bytes, buckets: tuple[int, ...], device: torch.device) -> None:
        trt = _tensorrt()
        self.buckets, self.device = buckets, device
        self.said = _Said(trt)
        with torch.cuda.device(device):
            self.runtime = trt.Runtime(self.said.logger)
            self.engine = self.runtime.deserialize_cuda_engine(content)
            if self.engine is None:
                raise plans.PlanError(f"TensorRT cannot deserialise the plan: {self.said.last}")
            self.classes = int(self.engine.get_tensor_shape(OUTPUT)[-1])
            self.channels_last = int(self.engine.get_tensor_shape(INPUT)[-1]) == CHANNELS
            self.contexts = {bucket: self._context(place) for place, bucket in enumerate(buckets)}

    def _context(self, profile: int) -> Any:
        context = self.engine.create_execution_context()
        stream = torch.cuda.current_stream(self.device)
        if not context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise plans.PlanError(f"TensorRT cannot use profile {profile}: {self.said.last}")
        stream.synchronize()
        return context

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.buckets[-1]:
            return torch.cat([self(part) for part in images.split(self.buckets[-1])])
        context = self.contexts[bucket_of(len(images), self.buckets)]
        pixels = (images.permute(0, 2, 3, 1) if self.channels_last else images).contiguous()
        logits = torch.empty((len(images), self.classes), dtype=torch.float16, device=images.device)
        context.set_input_shape(INPUT, tuple(pixels.shape))
        context.set_tensor_address(INPUT, pixels.data_ptr())
        context.set_tensor_address(OUTPUT, logits.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(images.device).cuda_stream):
            raise RuntimeError(f"TensorRT did not run the batch: {self.said.last}")
        return logits


def _tensorrt() -> Any:
    return importlib.import_module("tensorrt")
