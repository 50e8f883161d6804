"""KServe v1: POST /v1/models/NAME:predict with {"instances": [...]} is answered with {"predictions": [...]}.

/predictions takes the same object, see torchserve.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.near_names import did_you_mean
from handlers.protocol import bodies, encodings, options
from handlers.protocol.adapter import Adapter
from handlers.protocol.bodies import Part
from handlers.protocol.content import Content
from handlers.protocol.errors import EmptyRequest, InvalidInput
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import ROUTING, Row
from handlers.protocol.wording import kind_of, names_of

WANTED = (
    'v1 wants POST /v1/models/NAME:predict with a JSON object that holds "instances"; v2 wants POST '
    '/v2/models/NAME/infer with one that holds "inputs". Everything else is for /predictions/NAME'
)


class KServeV1(Adapter):
    """Takes the path of KServe v1, and what comes by v2's and is none of v2: TorchServe hands both over alike."""

    by_path = True

    def claims(self, row: Row) -> bool:
        return row.is_kserve

    def read(self, row: Row, model: Interface) -> Request:
        row.refuse_other_paths()
        media_type = encodings.media_type(row.header("accept"), model.media_types)
        sent = options.of_row(row, model)
        options.refuse_unknown(row.parameters.keys() - {"body", *model.options, *ROUTING}, model)
        body = bodies.read(row.parameters.get("body", b""), Part("the body", *row.content_type), model)
        if not (body.is_json and isinstance(body.value, dict) and "instances" in body.value):
            raise InvalidInput(f"this is no request of KServe's protocols. {WANTED}")
        return content_of(body.value, model).request(self, sent, media_type)


def content_of(envelope: Mapping[str, Any], model: Interface) -> Content:
    """Return the inputs and options of {"instances": [...], "parameters": {...}}.

    Raises EmptyRequest, InvalidInput or InvalidOption.
    """
    unknown = envelope.keys() - {"instances", "parameters"}
    if unknown:
        near = did_you_mean(unknown, ["parameters"])
        raise InvalidInput(f'unknown key {names_of(unknown)} beside "instances"{near}; known: "parameters"')
    instances, parameters = envelope["instances"], envelope.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput(f'"parameters" holds {kind_of(parameters)}; wanted: an object')
    chosen = {name: options.read(name, value, model, f"parameter {name}") for name, value in parameters.items()}
    if not isinstance(instances, list):
        raise InvalidInput(f'"instances" holds {kind_of(instances)}; wanted: a list')
    if not instances:
        raise EmptyRequest(f"the list is empty; wanted: {model.wanted}")
    return Content(instances, _predictions, chosen)


def _predictions(answers: Sequence[object]) -> object:
    return {"predictions": answers}


ADAPTER = KServeV1()
