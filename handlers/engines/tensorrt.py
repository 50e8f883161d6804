"""CNNs through NVIDIA TensorRT: one plan with an optimization profile for each batch bucket.

The network is the archive's `model.onnx` in half precision; a ResNet has BatchNorm folded. The plan comes with the
archive, or is built at first load (handlers.engines.plans). A batch runs in the smallest profile that holds it. Small
batches, and those that fill a bucket of handlers.engines.graphs, replay a CUDA graph. Others run at their own size on
a side stream. A plan made from ONNX reads channels_last images, (N, S, S, 3), without a copy. A plan made by
torch2trt reads (N, 3, S, S).

Source: the TensorRT developer guide, "Working with Dynamic Shapes", "Strongly Typed Networks" and "CUDA Graphs": each
graph has its own execution context, and all contexts share their device memory. TensorRT 8.6 takes the precision from
a builder flag; from 10 on it comes from the network's own types. Tested with 8.6 only.
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
from pathlib import Path
from typing import Any

import torch

from handlers import digests
from handlers.engines import plans
from handlers.engines.base import Engine, EngineSpec, LoadedEngine
from handlers.engines.graphs import BUCKETS, GraphedByBucket, bucket_of, on_side_stream
from handlers.engines.image_inputs import why_not_squares
from handlers.engines.titles import title

ONNX, PLAN_FOLDER = "model.onnx", "plan"  # in the archive
INPUT, OUTPUT = "images", "logits"  # names in the network
CHANNELS = 3
WORKSPACE_BYTES = 4 << 30
# Up to this many images, launching takes about as long as computing, so a graph that pads is faster than none.
PADDED = 32
SECONDS_PER_PROFILE = 95  # ResNet-101 with TensorRT 8.6 on an H200, without a timing cache

logger = logging.getLogger(__name__)


class TensorRT(Engine):
    """Runs archives with an ONNX network in fp16, on NVIDIA GPUs."""

    kinds = ("image-classifier",)
    rank = 20

    def why_not_here(self, spec: EngineSpec) -> str | None:
        if spec.device.type != "cuda" or torch.version.hip is not None:
            return f"it needs an NVIDIA GPU, and the device is {spec.device}"
        if why := self.why_never(spec):
            return why
        if not installed():
            return "the package tensorrt is not installed: pip install tensorrt, in the release that fits the driver"
        if why := import_problem():
            return why
        if not (spec.model_dir / ONNX).is_file():
            return f"the archive carries no {ONNX}; package it with --engine tensorrt"
        return None

    def why_never(self, spec: EngineSpec) -> str | None:
        if spec.precision != "fp16":
            return f"it runs fp16, and the precision is {spec.precision}"
        return why_not_squares(spec)

    def why_auto_skips(self, spec: EngineSpec) -> str | None:
        """Return why loading would take minutes; None if a plan that fits lies in the archive or the cache."""
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

    def why_auto_refuses(self, spec: EngineSpec) -> str | None:
        """Return why the archive's plan does not fit this machine, if onMismatch is refuse; else None."""
        archived = spec.model_dir / PLAN_FOLDER
        if spec.on_mismatch != "refuse" or not archived.is_dir():
            return None
        try:
            plans.check(archived, fingerprint(spec))
        except plans.PlanError as error:
            return f"{error}. onMismatch is refuse; with rebuild in model-config.yaml auto takes another engine"
        return None

    def load(self, spec: EngineSpec) -> LoadedEngine:
        """Find or build the plan, and deserialise it. Raises plans.PlanError, a ValueError that names both sides."""
        wanted, archived = fingerprint(spec), spec.model_dir / PLAN_FOLDER
        plan = plans.obtain(archived, spec.plan_cache, wanted, spec.on_mismatch, lambda: build(spec))
        runner = PlanRunner(plan.content, spec.buckets, spec.device)
        details: dict[str, object] = {
            "library": f"TensorRT {wanted.tensorrt}",
            "network": title(spec.model_dir),
            "plan": plan.source,
            "profiles": list(spec.buckets),
            "graphs": list(runner.graphed.buckets)
            if runner.graphed
            else "none: the plan's profiles cannot be shared",
            "onnx": f"sha256:{wanted.onnx}",
        }
        return LoadedEngine(runner, details)


ENGINE = TensorRT()


def installed() -> bool:
    """Whether TensorRT's Python package is installed. Does not import it."""
    return importlib.util.find_spec("tensorrt") is not None


@functools.cache
def import_problem() -> str | None:
    """Return why the installed package cannot be imported, or None."""
    try:
        tensorrt_module()
    except Exception as error:  # from its libraries: a loader's OSError, a driver's RuntimeError
        return f"the package tensorrt is installed and cannot be imported ({type(error).__name__}: {error})"
    return None


def fingerprint(spec: EngineSpec) -> plans.Fingerprint:
    """Return what a plan for `spec` on this machine depends on."""
    properties = torch.cuda.get_device_properties(spec.device)
    return plans.Fingerprint(
        tensorrt=tensorrt_module().__version__,
        cuda=str(torch.version.cuda),
        compute_capability=f"{properties.major}.{properties.minor}",
        gpu=properties.name,
        onnx=digests.of_file(spec.model_dir / ONNX),
        buckets=spec.buckets,
        image_size=spec.image_size,
        precision=spec.precision,
    )


def input_shape(count: int, spec: EngineSpec) -> tuple[int, int, int, int]:
    """Return the shape of a batch as the ONNX network reads it: (N, S, S, 3)."""
    return count, spec.image_size, spec.image_size, CHANNELS


def build(spec: EngineSpec, static: bool = False) -> bytes:
    """Build a plan from the archive's ONNX network, and log the progress: it takes minutes.

    Args:
        spec: its device is the GPU that the plan is for.
        static: False for one profile per bucket. True for batches of exactly the largest bucket, for comparisons.

    Returns: the serialised engine.

    Raises:
        plans.PlanError: with TensorRT's reason.
    """
    trt = tensorrt_module()
    with torch.cuda.device(spec.device):
        log = TensorRTLog(trt)
        builder = trt.Builder(log.logger)
        network = builder.create_network(network_flags(trt))
        parser = trt.OnnxParser(network, log.logger)
        if not parser.parse((spec.model_dir / ONNX).read_bytes()):
            errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise plans.PlanError(f"TensorRT cannot read {ONNX}: {errors}")
        config = _config(trt, builder)
        if static:
            network.get_input(0).shape = input_shape(spec.buckets[-1], spec)
        else:
            _add_profiles(builder, config, spec)
        with timing_cache(trt, config, spec, log), log_progress(len(spec.buckets)):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise plans.PlanError(f"TensorRT built no plan: {log.last_error or 'it gave no reason'}")
    return bytes(plan)


def network_flags(trt: Any) -> int:
    """Return flags for a strongly typed network if TensorRT knows them (10 and newer), else for an explicit batch."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if name in known:
            return 1 << int(known[name])
    return 0


def _config(trt: Any, builder: Any) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__:
        _configure_old(trt, config)
    return config


def _configure_old(trt: Any, config: Any) -> None:
    """Set the precision, and let contexts share a profile. Only 8.6 needs this."""
    if hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
    if hasattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806"):
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)


def _add_profiles(builder: Any, config: Any, spec: EngineSpec) -> None:
    smallest = 1
    for bucket in spec.buckets:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *(input_shape(count, spec) for count in (smallest, bucket, bucket)))
        config.add_optimization_profile(profile)
        smallest = bucket + 1


@contextlib.contextmanager
def timing_cache(trt: Any, config: Any, spec: EngineSpec, log: TensorRTLog) -> Iterator[None]:
    """Reuse kernel timings of earlier builds on this GPU with this TensorRT: a second build takes seconds with them.

    TensorRT 8.6 may accept only timings of the same process ("Myelin error from unknown graph", for ResNet-101 on an
    H200). The fault is known from 8.5, and gone in 10.2 (github.com/lightvector/KataGo, issues 739 and 945).
    """
    gpu = hashlib.sha256(torch.cuda.get_device_name(spec.device).encode()).hexdigest()[:12]
    path = spec.plan_cache / f"timing-{trt.__version__}-{gpu}"
    earlier = path.read_bytes() if path.is_file() else b""
    log.last_error = ""
    attached = _attach(config, earlier)
    if earlier and (log.last_error or not attached):
        logger.warning(
            "TensorRT %s does not accept the timings that an earlier build kept in %s; this build takes as long as "
            "the first one, and replaces them",
            trt.__version__,
            path,
        )
    if earlier and not attached:
        _attach(config, b"")  # without a cache this build would keep nothing, and the old timings would stay
    log.last_error = ""  # a failed build must not be explained by the timings
    yield
    _keep_timings(config, path)


def _attach(config: Any, timings: bytes) -> bool:
    """Give TensorRT a timing cache; b"" starts an empty one. Returns whether it was accepted."""
    cache = config.create_timing_cache(timings)
    return cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))


def _keep_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        plans.replace(path, bytes(cache.serialize()))
    except OSError as error:  # the plan is built; the next build is merely slower
        logger.warning("TensorRT's timings cannot be kept in %s: %s", path, error)


@contextlib.contextmanager
def log_progress(profiles: int) -> Iterator[None]:
    """Log a line every 15 s: building is silent otherwise, and takes minutes."""
    done, started = threading.Event(), time.monotonic()

    def log_until_done() -> None:
        while not done.wait(15):
            logger.info("building the TensorRT plan: %.0f s so far", time.monotonic() - started)

    estimate = profiles * SECONDS_PER_PROFILE
    logger.info("building a TensorRT plan with %d profiles; up to about %d s the first time", profiles, estimate)
    thread = threading.Thread(target=log_until_done, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    logger.info("TensorRT plan built in %.0f s", time.monotonic() - started)


class TensorRTLog:
    """Passes TensorRT's errors and warnings to this module's logger.

    last_error: its last error, which explains a failed build; "" if there was none.
    """

    def __init__(self, trt: Any) -> None:
        outer = self
        self.last_error = ""

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.ERROR):
                    outer.last_error = message
                    logger.error("TensorRT: %s", message)
                elif int(severity) == int(trt.ILogger.WARNING):
                    logger.warning("TensorRT: %s", message)

        self.logger = Logger()


class PlanRunner:
    """A deserialised plan: (N, 3, S, S) fp16 -> logits (N, classes) fp16, in order with the current stream.

    A batch of up to PADDED images, or of exactly a bucket's size, replays that bucket's CUDA graph. Any other batch
    runs at its own size on this runner's stream. There it is copied only if its layout is not the plan's.

    Args:
        content: the serialised engine.
        buckets: the largest batch size of each profile, ascending.
        device: the GPU.

    Attributes:
        graphed: the graphs. None if each profile takes only one execution context, as TensorRT 8.6 builds plans
            unless told otherwise: each graph needs its own context.

    Raises:
        plans.PlanError: if TensorRT cannot use the plan.
    """

    def __init__(self, content: bytes, buckets: tuple[int, ...], device: torch.device) -> None:
        trt = tensorrt_module()
        self.buckets, self.device = buckets, device
        self.log = TensorRTLog(trt)
        with torch.cuda.device(device):
            self.runtime = trt.Runtime(self.log.logger)
            self.engine = self.runtime.deserialize_cuda_engine(content)
            if self.engine is None:
                raise plans.PlanError(f"TensorRT cannot deserialise the plan: {self.log.last_error}")
            self.classes = int(self.engine.get_tensor_shape(OUTPUT)[-1])
            self.channels_last = int(self.engine.get_tensor_shape(INPUT)[-1]) == CHANNELS
            self.stream = torch.cuda.Stream(device)
            self.memory = torch.empty(max(1, _memory_bytes(self.engine)), dtype=torch.uint8, device=device)
            self.contexts = {bucket: self._context(profile) for profile, bucket in enumerate(buckets)}
            self.graphed = self._graphed()
        self.in_graphs: dict[int, tuple[Any, torch.Tensor, torch.Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.buckets[-1]:
            return torch.cat([self(part) for part in images.split(self.buckets[-1])])
        if self.graphed and (len(images) <= PADDED or len(images) in self.graphed.buckets):
            return self.graphed(images)
        return self._at_own_size(images)

    def _at_own_size(self, images: torch.Tensor) -> torch.Tensor:
        context = self.contexts[bucket_of(len(images), self.buckets)]
        pixels = self._as_read(images).contiguous()
        logits = self._empty_logits(len(images))
        with on_side_stream(self.stream):
            _bind(context, pixels, logits)
            self._execute(context)
        return logits

    def _in_graph(self, images: torch.Tensor) -> torch.Tensor:
        """The work that a graph captures: (B, 3, S, S) at a fixed address -> logits (B, classes) at a fixed address.

        It runs twice per bucket. Only the first run, outside the capture, sets shapes or allocates memory.
        """
        count, pixels = len(images), self._as_read(images)
        context, bound, logits = self.in_graphs.get(count, (None, None, None))
        if bound is None or logits is None or bound.data_ptr() != pixels.data_ptr():
            context = context or self._context(self.buckets.index(bucket_of(count, self.buckets)))
            logits = self._empty_logits(count)
            _bind(context, pixels, logits)
            self.in_graphs[count] = (context, pixels, logits)
        self._execute(context)
        return logits

    def _graphed(self) -> GraphedByBucket | None:
        """Return graphs for every bucket that a profile holds; None if a profile takes no second context."""
        if self._try_context(0) is None:
            logger.warning(
                "the plan runs without CUDA graphs; a plan that is built again runs with them: %s",
                self.log.last_error,
            )
            return None
        sizes = tuple(sorted({*(bucket for bucket in BUCKETS if bucket < self.buckets[-1]), self.buckets[-1]}))
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return GraphedByBucket(self._in_graph, CHANNELS, sizes, layout)

    def _context(self, profile: int) -> Any:
        context = self._try_context(profile)
        if context is None:
            raise plans.PlanError(f"TensorRT cannot use profile {profile}: {self.log.last_error}")
        return context

    def _try_context(self, profile: int) -> Any:
        """Return a context that uses the shared memory, or None if TensorRT gives none for this profile."""
        context = _context_without_memory(tensorrt_module(), self.engine)
        _give_memory(context, self.memory)
        with on_side_stream(self.stream):
            taken = context.set_optimization_profile_async(profile, self.stream.cuda_stream)
        self.stream.synchronize()
        return context if taken else None

    def _as_read(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1) if self.channels_last else images

    def _empty_logits(self, count: int) -> torch.Tensor:
        return torch.empty((count, self.classes), dtype=torch.float16, device=self.device)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise RuntimeError(f"TensorRT did not run the batch: {self.log.last_error}")


def _bind(context: Any, pixels: torch.Tensor, logits: torch.Tensor) -> None:
    """Set shape and addresses of the next run: pixels as the plan reads them, logits (N, classes)."""
    context.set_input_shape(INPUT, tuple(pixels.shape))
    context.set_tensor_address(INPUT, pixels.data_ptr())
    context.set_tensor_address(OUTPUT, logits.data_ptr())


def _memory_bytes(engine: Any) -> int:
    """Return the bytes that a context needs for activations, in the largest profile. Renamed in TensorRT 10.1."""
    return int(
        engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
    )


def _context_without_memory(trt: Any, engine: Any) -> Any:
    """Create an execution context that has to be given memory. TensorRT 10 renamed the call."""
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is not None:
        return engine.create_execution_context(strategies.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def _give_memory(context: Any, memory: torch.Tensor) -> None:
    if hasattr(context, "set_device_memory"):  # from 10.1 on
        context.set_device_memory(memory.data_ptr(), memory.numel())
    else:
        context.device_memory = memory.data_ptr()


def tensorrt_module() -> Any:
    """Import TensorRT's Python package."""
    return importlib.import_module("tensorrt")
