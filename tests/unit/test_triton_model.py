"""The part of Triton's model.py that needs no Triton; its backend's module is a stand-in."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from triton_host import binary_tensors

from handlers import HttpResponse
from handlers.hosts.model import ModelLostError


class TritonError(Exception):
    """As the backend's: a message and a code."""

    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL = "invalid", "not found", "unavailable", "internal"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    utilities: Any = ModuleType("triton_python_backend_utils")
    utilities.TritonError = TritonError
    utilities.Tensor = lambda name, array: (name, array)
    utilities.InferenceResponse = lambda tensors=None, error=None: SimpleNamespace(tensors=tensors, error=error)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)
    monkeypatch.setitem(sys.modules, "binary_tensors", binary_tensors)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    yield importlib.import_module("triton_host.model")
    sys.modules.pop("triton_host.model")


def served(module: Any, run: Any) -> Any:
    """A model of the backend whose archive answers with `run`."""
    found = module.TritonPythonModel()
    found.model = SimpleNamespace(run=run)
    return found


def asked(**parameters: object) -> Any:
    """A request with one text."""
    text = SimpleNamespace(name=lambda: "text", as_numpy=lambda: np.array([[b"a"]], dtype=object))
    return SimpleNamespace(
        inputs=lambda: [text],
        parameters=lambda: json.dumps(parameters) if parameters else "",
        requested_output_names=lambda: ["scores"],
    )


def answer(array: Any) -> HttpResponse:
    """The archive's answer with one output, in raw bytes behind the JSON."""
    headers, body = binary_tensors.written([("scores", array)], [], {})
    head = json.loads(body[: int(headers[binary_tensors.HEADER])])
    raw = body[int(headers[binary_tensors.HEADER]) :]
    text = json.dumps({"outputs": head["inputs"]}).encode()
    return HttpResponse(200, {binary_tensors.HEADER.lower(): str(len(text))}, text + raw)


def test_the_device_and_the_number_of_processes(module: Any) -> None:
    assert module._device({"model_instance_kind": "GPU", "model_instance_device_id": "1"}) == "cuda:1"
    assert module._device({"model_instance_kind": "CPU", "model_instance_device_id": "0"}) == "cpu"
    assert module._instances({"instance_group": [{"count": 2, "gpus": [0, 1]}, {"count": 1, "gpus": []}]}) == 5
    assert module._instances({}) == 1


@pytest.mark.parametrize("edited", [True, False])
def test_settings_that_were_edited_before_the_export_are_taken(
    module: Any, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    told: dict[str, Any] = {}

    def load_archive(path: object, **options: object) -> Any:
        told.update(options)
        return SimpleNamespace(interface=SimpleNamespace(task="embeddings"))

    monkeypatch.setattr("handlers.load_archive", load_archive)
    parameters = {"archive_digest": {"string_value": "sha256:0"}}
    if edited:
        parameters["edited_settings"] = {"string_value": "true"}
    config = {"parameters": parameters, "output": [{"name": "embeddings", "data_type": "TYPE_FP32"}]}
    args = {"model_config": json.dumps(config), "model_name": "x", "model_instance_kind": "CPU"}
    module.TritonPythonModel().initialize(args)
    assert told["edited_settings"] is edited
    assert told["digest"] == "sha256:0"


def test_requests_together_are_one_run_and_an_error_is_one_requests(module: Any) -> None:
    calls: list[Any] = []

    def run(requests: list[Any]) -> list[HttpResponse]:
        calls.append(requests)
        return [answer(np.ones(2, np.float32)), HttpResponse(415, {}, b'{"error": "no image"}')]

    good, bad = served(module, run).execute([asked(), asked(top_k=1)])
    assert [len(requests) for requests in calls] == [2]
    assert all(request.door == "kserve" for request in calls[0])
    assert b'"top_k": 1' in calls[0][1].body
    assert good.error is None
    ((name, array),) = good.tensors
    assert (name, array.shape) == ("scores", (2, 1))
    assert bad.error.args == ("no image", TritonError.INVALID_ARG)


def test_fp16_is_refused(module: Any) -> None:
    (found,) = served(module, lambda requests: [answer(np.ones((1, 2), np.float16))]).execute([asked()])
    assert "leave the option dtype out" in found.error.args[0]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid"), (413, "invalid"), (404, "not found"), (503, "unavailable"), (500, "internal")],
)
def test_codes(module: Any, status: int, code: str) -> None:
    assert module._code(status) == code


def test_a_lost_gpu_ends_the_process(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(requests: list[Any]) -> list[HttpResponse]:
        raise ModelLostError("the GPU is lost")

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(module.os, "_exit", leave)
    with pytest.raises(SystemExit, match="1"):
        served(module, run).execute([asked()])
