"""CNNs through NVIDIA TensorRT: one plan with an optimization profile for each batch bucket.

The network is the archive's `model.onnx` in half precision, a ResNet's with BatchNorm folded; the plan travels in the
archive or is built at first load (handlers.engines.plans). A batch runs in the smallest profile that holds it. Small
batches, and those that fill a bucket of handlers.engines.graphs, replay a CUDA graph; others run at their own size on
a stream of their own, without a copy: a plan from ONNX reads images as they lie in channels_last, (N, S, S, 3). One
that torch2trt made reads (N, 3, S, S).

Source: the TensorRT developer guide, "Working with Dynamic Shapes", "Strongly Typed Networks" and "CUDA Graphs": one
execution context a graph, with device memory that they share. TensorRT 8.6 takes the precision from a builder flag;
from 10 on it comes from the network's own types. Tried on 8.6 only.
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
from handlers.engines.graphs import BUCKETS, GraphedByBucket, beside, bucket_of

KINDS = ("image-classifier",)
RANK = 20

ONNX, PLAN_FOLDER = "model.onnx", "plan"
INPUT, OUTPUT = "images", "logits"
CHANNELS = 3
WORKSPACE_BYTES = 4 << 30
# Up to so many images a launch takes about as long as the computing, and a graph that pads is faster than none.
PADDED = 32
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
    from handlers.engines import networks

    wanted = fingerprint(spec)
    plan = plans.obtain(spec.model_dir / PLAN_FOLDER, spec.plan_cache, wanted, spec.on_mismatch, lambda: build(spec))
    runner = PlanRunner(plan.content, spec.buckets, spec.device)
    details: dict[str, object] = {
        "library": f"TensorRT {wanted.tensorrt}",
        "network": networks.title(spec.model_dir),
        "plan": plan.source,
        "profiles": list(spec.buckets),
        "graphs": list(runner.graphed.buckets) if runner.graphed else "none: the plan's profiles cannot be shared",
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
    if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__:
        _configure_old(trt, config)
    return config


def _configure_old(trt: Any, config: Any) -> None:
    """What 8.6 has to be told, and 10 does without: the precision, and that contexts share a profile."""
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
    """TensorRT's own log lines, errors and warnings to ours; the last error explains a failed build."""

    def __init__(self, trt: Any) -> None:
        said = self
        self.last = ""

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.ERROR):
                    said.last = message
                    logger.error("TensorRT: %s", message)
                elif int(severity) == int(trt.ILogger.WARNING):
                    logger.warning("TensorRT: %s", message)

        self.logger = Logger()


class PlanRunner:
    """A deserialised plan: (N, 3, S, S) fp16 -> logits (N, classes) fp16, in the order of the current stream.

    A batch of up to PADDED images, or of just a bucket's size, replays that bucket's CUDA graph. Another one runs at
    its own size on a stream of this runner's; images that lie as the plan reads them are not copied there.

    graphed: None for a plan whose profiles take one execution context each, as TensorRT 8.6 builds them unless told
    otherwise: each graph needs a context of its own.
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
            self.stream = torch.cuda.Stream(device)
            self.memory = torch.empty(max(1, _memory_bytes(self.engine)), dtype=torch.uint8, device=device)
            self.contexts = {bucket: self._context(place) for place, bucket in enumerate(buckets)}
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
        with beside(self.stream):
            _bind(context, pixels, logits)
            self._execute(context)
        return logits

    def _in_graph(self, images: torch.Tensor) -> torch.Tensor:
        """What a graph is captured of: (B, 3, S, S) at an address that stays -> logits at one that stays.

        It runs twice a bucket. All that is set or allocated takes place in the first run, outside the capture.
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
        """Graphs for every bucket that a profile holds; None where a profile takes no second context."""
        if self._try_context(0) is None:
            logger.warning("the plan runs without CUDA graphs, which one that is built anew has: %s", self.said.last)
            return None
        sizes = tuple(sorted({*(bucket for bucket in BUCKETS if bucket < self.buckets[-1]), self.buckets[-1]}))
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return GraphedByBucket(self._in_graph, CHANNELS, sizes, layout)

    def _context(self, profile: int) -> Any:
        context = self._try_context(profile)
        if context is None:
            raise plans.PlanError(f"TensorRT cannot use profile {profile}: {self.said.last}")
        return context

    def _try_context(self, profile: int) -> Any:
        """One that runs in the shared memory, or None where TensorRT gives none for this profile."""
        context = _context_without_memory(_tensorrt(), self.engine)
        _give_memory(context, self.memory)
        with beside(self.stream):
            taken = context.set_optimization_profile_async(profile, self.stream.cuda_stream)
        self.stream.synchronize()
        return context if taken else None

    def _as_read(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1) if self.channels_last else images

    def _empty_logits(self, count: int) -> torch.Tensor:
        return torch.empty((count, self.classes), dtype=torch.float16, device=self.device)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise RuntimeError(f"TensorRT did not run the batch: {self.said.last}")


def _bind(context: Any, pixels: torch.Tensor, logits: torch.Tensor) -> None:
    """Set shape and addresses of the next run."""
    context.set_input_shape(INPUT, tuple(pixels.shape))
    context.set_tensor_address(INPUT, pixels.data_ptr())
    context.set_tensor_address(OUTPUT, logits.data_ptr())


def _memory_bytes(engine: Any) -> int:
    """What a context needs for what passes between its layers, in the largest profile. Its name is new from 10.1."""
    return int(
        engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
    )


def _context_without_memory(trt: Any, engine: Any) -> Any:
    """An execution context that has to be given memory; by 10's name, or by 8.6's."""
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is not None:
        return engine.create_execution_context(strategies.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def _give_memory(context: Any, memory: torch.Tensor) -> None:
    if hasattr(context, "set_device_memory"):  # from 10.1 on
        context.set_device_memory(memory.data_ptr(), memory.numel())
    else:
        context.device_memory = memory.data_ptr()


def _tensorrt() -> Any:
    return importlib.import_module("tensorrt")
