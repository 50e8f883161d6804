"""What a path of the Open Inference Protocol asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from handlers.protocol.errors import UnknownPath
from handlers.protocol.interface import Interface
from handlers.protocol.row import Row

Asked = Literal["server", "live", "ready", "model", "model-ready", "infer"]
SERVER: dict[str, Asked] = {"v2": "server", "v2/health/live": "live", "v2/health/ready": "ready"}
# Other protocols have paths with v2 too, as Cohere's v2/rerank. Triton's repository is known, and not offered.
BEGINNINGS = ("v2/health/", "v2/models/", "v2/repository/")
MODEL: dict[tuple[str, ...], Asked] = {(): "model", ("ready",): "model-ready", ("infer",): "infer"}


def asked(row: Row, model: Interface) -> Asked:
    """Return what a row asks for. Raises UnknownPath.

    /v2/models/NAME/infer alone reaches the handler by itself, and TorchServe has found the model by the name. All
    other paths of the protocol come as /predictions/NAME/VERSION/v2/..., where the model's name stands twice.
    """
    if row.is_kserve:
        return "infer"
    if row.url_path in SERVER:
        return SERVER[row.url_path]
    parts = row.url_path.split("/")
    if parts[:2] != ["v2", "models"] or len(parts) < 3:
        raise _unknown()
    return MODEL[_of_model(parts[2], parts[3:], model)]


def _of_model(name: str, rest: Sequence[str], model: Interface) -> tuple[str, ...]:
    if name != model.name:
        raise UnknownPath("the path names two models: /predictions/NAME/VERSION/v2/models/NAME wants the same twice")
    if len(rest) >= 2 and rest[0] == "versions":
        if rest[1] != model.version:
            raise UnknownPath("the path names two versions of the model; wanted: the same twice, or the first alone")
        rest = rest[2:]
    if tuple(rest) not in MODEL:
        raise _unknown()
    return tuple(rest)


def _unknown() -> UnknownPath:
    return UnknownPath(
        "KServe's protocol v2 has here, behind /predictions/NAME/VERSION/: v2, v2/health/live, v2/health/ready, "
        "v2/models/NAME, v2/models/NAME/ready and v2/models/NAME/infer"
    )
