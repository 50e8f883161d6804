"""What the Open Inference Protocol tells of a model, and of the server."""

from __future__ import annotations

from handlers.protocol.interface import Interface
from handlers.protocol.open_inference.inputs import IMAGE, TEXT
from handlers.protocol.open_inference.outputs import declared
from handlers.protocol.open_inference.paths import Asked


def of(asked: Asked, model: Interface) -> dict[str, object]:
    """Return the answer to a path that asks for nothing of the model. A worker that answers is ready."""
    answers: dict[Asked, dict[str, object]] = {
        "server": {"name": "torchserve", "version": "", "extensions": ["binary_tensor_data"]},
        "live": {"live": True},
        "ready": {"ready": True},
        "model": _of_model(model),
        "model-ready": {"name": model.name, "ready": True},
    }
    return answers[asked]


def _of_model(model: Interface) -> dict[str, object]:
    """Names, datatypes and shapes of the model's tensors; -1 is a side that differs from request to request.

    Image classifiers also take tensors of pixels. That is not said here: an input has one datatype.
    """
    name = TEXT if model.takes_texts else IMAGE
    return {
        "name": model.name,
        "versions": [model.version] if model.version else [],
        "platform": "pytorch",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
            for output in declared(model.task)
        ],
    }
