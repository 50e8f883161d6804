"""Files that the TensorRT engine needs in an archive: the network as ONNX and, if a GPU is here, the plan."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from archive import onnx_export
from handlers.engines import EngineSpec, plans, tensorrt
from handlers.engines.folding import Convolution, TorchResNetOps, convolve


class ConvertError(ValueError):
    """The conversion that was asked for cannot be done here. The message says what to do instead."""


def are_carried(engine: str, precision: str, device: str) -> bool:
    """Return whether an archive for these settings carries the files.

    For the engine "auto" it does if TensorRT and onnx are installed here and TensorRT may come to serve the model.
    """
    return engine == "tensorrt" or (_may_serve(engine, precision, device) and _onnx_installed())


def why_left_out(engine: str, precision: str, device: str) -> str | None:
    """Return a note if "auto" will not try TensorRT only because the package onnx is not installed, else None."""
    if _onnx_installed() or not _may_serve(engine, precision, device):
        return None
    return (
        "TensorRT is installed, and the package onnx is not: the archive carries no ONNX, so auto will not try "
        "TensorRT (scripts/setup serve tensorrt)"
    )


def write(
    network: Any, folder: Path, buckets: tuple[int, ...], image_size: int, converter: str, plan_at: str
) -> None:
    """Write `model.onnx` and, if it is to be built now, `plan/`.

    Args:
        network: a classifier of handlers.engines.networks, fp32 on the CPU. It is left as it is.
        folder: where the files go.
        buckets: batch sizes that the plan is built for, ascending.
        image_size: side of the network's input, in pixels.
        converter: "onnx" or "torch2trt".
        plan_at: "packaging" builds the plan now, "first-load" does not, "auto" does if a GPU and TensorRT are here.

    Raises:
        ConvertError: if this cannot be done here.
        ValueError: if PyTorch cannot export the network.
        plans.PlanError: if TensorRT builds no plan.
    """
    usable = tensorrt.installed() and torch.cuda.is_available() and tensorrt.import_problem() is None
    builds = plan_at != "first-load" and usable
    _refuse(converter, plan_at, builds)
    onnx_export.export(network, folder / tensorrt.ONNX, image_size)
    if not builds:
        return
    spec = EngineSpec(
        "image-classifier", folder, torch.device("cuda", 0), "fp16", image_size=image_size, buckets=buckets
    )
    content = through_torch2trt(network, spec) if converter == "torch2trt" else tensorrt.build(spec)
    plans.write(folder / tensorrt.PLAN_FOLDER, content, tensorrt.fingerprint(spec))


def through_torch2trt(model: Any, spec: EngineSpec) -> bytes:
    """Build a plan by NVIDIA-AI-IOT/torch2trt, which maps each PyTorch call to a TensorRT layer.

    Its input is (N, 3, S, S) contiguous, so a batch in channels_last is copied first.

    Args:
        model: a classifier of handlers.engines.networks.
        spec: has one bucket, the largest batch size.

    Returns:
        The serialised TensorRT engine.

    Raises:
        ConvertError: if torch2trt is not installed, or the spec has several buckets.
    """
    _refuse_no_torch2trt()
    if len(spec.buckets) != 1:
        raise ConvertError(
            f"torch2trt makes plans of one profile; --plan-buckets {spec.buckets[-1]} asks for that one alone"
        )
    from torch2trt import torch2trt

    network = onnx_export.module(model, spec.device, torch.float16, _TraceableOps())
    largest = spec.buckets[-1]
    shapes = {
        f"{name}_shapes": [(count, 3, spec.image_size, spec.image_size)]
        for name, count in (("min", 1), ("opt", largest), ("max", largest))
    }
    example = torch.zeros((largest, 3, spec.image_size, spec.image_size), dtype=torch.float16, device=spec.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorRT warns of deprecated interfaces that torch2trt calls
        converted: Any = torch2trt(
            network,
            [example],
            fp16_mode=True,
            input_names=[tensorrt.INPUT],
            output_names=[tensorrt.OUTPUT],
            max_workspace_size=tensorrt.WORKSPACE_BYTES,
            **shapes,
        )
    return bytes(converted.engine.serialize())


def _refuse(converter: str, plan_at: str, builds: bool) -> None:
    """Raise ConvertError, before any work is done, for what cannot be done here."""
    if not _onnx_installed():
        raise ConvertError("this needs the package onnx, which is not installed: scripts/setup serve tensorrt")
    if converter == "torch2trt":
        _refuse_no_torch2trt()
        if not builds:
            raise ConvertError("torch2trt converts at packaging only, and that needs TensorRT and an NVIDIA GPU here")
    if plan_at == "packaging" and not builds:
        raise ConvertError(
            "--plan packaging needs TensorRT and an NVIDIA GPU here; --plan first-load builds it later"
        )


def _refuse_no_torch2trt() -> None:
    if importlib.util.find_spec("torch2trt") is None:
        raise ConvertError(
            "torch2trt is not installed; it is on no registry: git clone https://github.com/NVIDIA-AI-IOT/torch2trt "
            "&& pip install ./torch2trt. --converter onnx needs nothing beyond TensorRT"
        )


class _TraceableOps(TorchResNetOps):
    """The fused operations as single PyTorch calls for which torch2trt has converters."""

    def conv_relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        return F.relu(convolve(images, conv))

    def conv_add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        return F.relu(convolve(images, conv) + residual)


def _may_serve(engine: str, precision: str, device: str) -> bool:
    """Return whether "auto" may come to choose TensorRT."""
    return engine == "auto" and precision in ("auto", "fp16") and device != "cpu" and tensorrt.installed()


def _onnx_installed() -> bool:
    return importlib.util.find_spec("onnx") is not None
