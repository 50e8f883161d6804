"""What the TensorRT engine needs in an archive: the network as ONNX and, where a GPU is at hand, the plan."""

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
    """The asked conversion cannot be done here; says what to do instead."""


def wanted(engine: str, precision: str, device: str) -> bool:
    """Whether an archive for these settings carries ONNX: for "auto", where TensorRT is here and may serve it."""
    return engine == "tensorrt" or (_may_serve(engine, precision, device) and _onnx_installed())


def left_out(engine: str, precision: str, device: str) -> str | None:
    """A note for an archive whose "auto" will not try TensorRT for want of the package onnx."""
    if _onnx_installed() or not _may_serve(engine, precision, device):
        return None
    return (
        "TensorRT is installed, and the package onnx is not: the archive carries no ONNX, so that auto will not try "
        "TensorRT (scripts/setup serve tensorrt)"
    )


def stage(model: Any, folder: Path, buckets: tuple[int, ...], image_size: int, converter: str, plan_at: str) -> None:
    """Write `model.onnx` of a classifier of handlers.engines.networks into `folder`, and `plan/` where it is due.

    Raises ConvertError; ValueError where it cannot be exported; plans.PlanError where TensorRT builds none.
    """
    usable = tensorrt.installed() and torch.cuda.is_available() and tensorrt.import_problem() is None
    builds = plan_at != "first-load" and usable
    _refuse(converter, plan_at, builds)
    onnx_export.export(model, folder / tensorrt.ONNX, image_size)
    if not builds:
        return
    spec = EngineSpec(
        "image-classifier", folder, torch.device("cuda", 0), "fp16", image_size=image_size, buckets=buckets
    )
    content = through_torch2trt(model, spec) if converter == "torch2trt" else tensorrt.build(spec)
    plans.write(folder / tensorrt.PLAN_FOLDER, content, tensorrt.fingerprint(spec))


def through_torch2trt(model: Any, spec: EngineSpec) -> bytes:
    """A plan by NVIDIA-AI-IOT/torch2trt, which maps each PyTorch call to a TensorRT layer; one profile only.

    It reads (N, 3, S, S), so that a batch in channels_last is copied first.

    Raises ConvertError where torch2trt is not installed or several buckets are asked for.
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
        warnings.simplefilter("ignore")  # TensorRT's, of interfaces that torch2trt still calls
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
    """Raises ConvertError, before any work is done, for what cannot be done here."""
    if not _onnx_installed():
        raise ConvertError("the package onnx is not installed, which this needs: scripts/setup serve tensorrt")
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
    """The fused calls in words that torch2trt has converters for."""

    def conv_relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        return F.relu(convolve(images, conv))

    def conv_add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        return F.relu(convolve(images, conv) + residual)


def _may_serve(engine: str, precision: str, device: str) -> bool:
    """Whether "auto" may come to choose TensorRT."""
    return engine == "auto" and precision in ("auto", "fp16") and device != "cpu" and tensorrt.installed()


def _onnx_installed() -> bool:
    return importlib.util.find_spec("onnx") is not None
