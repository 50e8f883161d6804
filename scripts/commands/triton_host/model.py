"""A model archive in Triton's Python backend. scripts/export-triton copies this file into the model repository.

Each instance is a process of its own, so it runs the handlers that its archive carries.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
ARCHIVE = HERE / "archive"
# The archive's own handlers come first, and bytecode is not written: the repository may be read-only.
sys.path[:0] = [str(ARCHIVE), str(HERE)]
sys.dont_write_bytecode = True

import binary_tensors  # noqa: E402

logger = logging.getLogger(__name__)
FP16 = "the output is declared as FP32 here, and FP16 was asked for; leave the option dtype out"


class TritonPythonModel:
    """What the backend makes one of per instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the archive. Raises as load_archive."""
        from handlers import load_archive

        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.model = load_archive(
            ARCHIVE,
            name=args["model_name"],
            device=_device(args),
            workers=_instances(config),
            digest=parameters["archive_digest"],
            edited_settings=parameters.get("edited_settings") == "true",
        )
        self.datatypes = {output["name"]: output["data_type"] for output in config["output"]}
        self._refuse_other_outputs()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests that Triton has put together, in one run of the network."""
        from handlers.hosts.model import ModelLostError

        try:
            answers = self.model.run([self._asked(request) for request in requests])
        except ModelLostError as error:
            logger.critical("%s", error)
            _end_server()
        return [self._response(answer) for answer in answers]

    def finalize(self) -> None:
        """Free the model."""
        self.model.close()

    def _asked(self, request: Any) -> Any:
        from handlers import HttpRequest

        tensors = [(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()]
        options = json.loads(request.parameters() or "{}")
        headers, body = binary_tensors.written(tensors, list(request.requested_output_names()), options)
        return HttpRequest(headers=headers, body=body, door="kserve")

    def _response(self, answer: Any) -> Any:
        if answer.status != 200:
            error = pb_utils.TritonError(json.loads(answer.body)["error"], _code(answer.status))
            return pb_utils.InferenceResponse(error=error)
        outputs = binary_tensors.read(answer.headers, answer.body)
        if any(array.dtype == "float16" for array in outputs.values()):
            error = pb_utils.TritonError(FP16, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        # Triton wants the batch's dimension and another one.
        shaped = {name: array.reshape(len(array), -1) for name, array in outputs.items()}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in shaped.items()])

    def _refuse_other_outputs(self) -> None:
        from handlers.protocol.open_inference.outputs import declared

        wanted = {output.name for output in declared(self.model.interface.task)}
        if wanted != self.datatypes.keys():
            raise ValueError(
                f"config.pbtxt names the outputs {sorted(self.datatypes)}, and the archive has {sorted(wanted)}; "
                "export it with a tree of the archive's version"
            )


def _end_server() -> None:
    """End Triton and this process. Triton 2.51 starts no other process in the place of one that ended.

    Nothing runs on the lost GPU any more in this process, so each further request would get a 500.
    """
    parent = os.getppid()
    if Path(f"/proc/{parent}/comm").read_text(encoding="utf-8").strip() == "tritonserver":
        os.kill(parent, signal.SIGTERM)
    os._exit(1)


def _device(args: dict[str, str]) -> str:
    return f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"


def _instances(config: dict[str, Any]) -> int:
    """Processes of this model on this machine."""
    groups = config.get("instance_group") or [{"count": 1}]
    return sum(int(group.get("count", 1)) * max(1, len(group.get("gpus") or [])) for group in groups)


def _code(status: int) -> Any:
    """Triton's error code that its HTTP front end turns into this status, or one of the same hundred."""
    errors = pb_utils.TritonError
    codes = {404: errors.NOT_FOUND, 503: errors.UNAVAILABLE}
    return codes.get(status, errors.INVALID_ARG if status < 500 else errors.INTERNAL)
