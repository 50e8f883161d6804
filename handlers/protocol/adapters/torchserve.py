"""TorchServe's own protocol: /predictions, /invocations, and gRPC's Predictions and StreamPredictions.

Inputs come as the raw body, as parts of a form, as entries of gRPC's map, or in JSON: one by itself, or a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handlers.protocol import bodies, encodings, forms, options
from handlers.protocol.adapter import Adapter
from handlers.protocol.adapters import kserve_v1
from handlers.protocol.bodies import Part
from handlers.protocol.charsets import content_type
from handlers.protocol.content import Content
from handlers.protocol.errors import EmptyRequest, InvalidInput, UnsupportedMediaType
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import ROUTING, Row
from handlers.protocol.wording import names_of

FORM = "application/x-www-form-urlencoded"
ENVELOPES = {
    "inputs": "KServe v2",
    "input": "OpenAI's API (embeddings are at /predictions/NAME/VERSION/embeddings)",
    "messages": "OpenAI's API",
    "prompt": "OpenAI's API",
}


class TorchServe(Adapter):
    """Reads every row that no other protocol claims."""

    priority = 0

    def claims(self, row: Row) -> bool:
        return True

    def read(self, row: Row, model: Interface) -> Request:
        row.refuse_other_paths()
        media_type = encodings.media_type(row.header("accept"), model.media_types)
        sent = options.of_row(row, model)
        _refuse_unread_forms(row, model)
        values = {name: value for name, value in row.parameters.items() if name not in (*model.options, *ROUTING)}
        if "body" in values and not row.is_multipart:
            options.refuse_unknown(values.keys() - {"body"}, model)
            content = _content(values["body"], Part("the body", *row.content_type), model)
        elif values:
            content = _content_of_parts(values, row, model)
        else:
            raise EmptyRequest(f"the request holds no input; wanted: {model.wanted}")
        return content.request(self, sent, media_type)


def _refuse_unread_forms(row: Row, model: Interface) -> None:
    """Raises UnsupportedMediaType for a form that TorchServe drops, or could not take apart."""
    if row.content_type[0] == FORM:
        raise UnsupportedMediaType(
            f"the body came as {FORM}, which is what curl -d sends unless told otherwise; wanted: {model.wanted}"
        )
    if row.is_multipart and row.content_types.get("body", "").lower().startswith("multipart/"):
        raise UnsupportedMediaType("the body is no form that can be read; wanted: multipart/form-data; boundary=...")


def _content(value: object, part: Part, model: Interface) -> Content:
    """A body, a part of a form, or an entry of gRPC's map -> its inputs."""
    body = bodies.read(value, part, model)
    if not body.is_json:
        return Content([body.value])
    if isinstance(body.value, dict):
        return _content_of_object(body.value, model)
    if not isinstance(body.value, list):
        return Content([body.value])
    if not body.value:
        raise EmptyRequest(f"the list is empty; wanted: {model.wanted}")
    return Content(body.value, list)


def _content_of_object(value: Mapping[str, Any], model: Interface) -> Content:
    if "instances" in value:
        return kserve_v1.content_of(value, model)
    for key, whose in ENVELOPES.items():
        if key in value:
            raise InvalidInput(
                f'an object with "{key}" came, as {whose} has it, which is not read; wanted: {model.wanted}'
            )
    return Content([value])


def _content_of_parts(values: Mapping[str, Any], row: Row, model: Interface) -> Content:
    """Multipart, one input a part; gRPC, one input an entry of its map; `text` and `text_pair` are one input.

    One alone is read as a body is, with lists and "instances".
    """
    for name, value in values.items():
        forms.refuse_unknown_field(name, value, row.content_types.get(name, ""), model)
    parts = {
        name: _content(value, Part(f"part {names_of([name])}", *content_type(row.content_types.get(name, ""))), model)
        for name, value in values.items()
    }
    if "text_pair" in parts:
        parts = _with_pair(parts)
    forms.refuse_lost_parts(row)
    if len(parts) == 1:
        return next(iter(parts.values()))
    return Content([_single(name, part) for name, part in parts.items()], list)


def _with_pair(parts: Mapping[str, Content]) -> dict[str, Content]:
    """Return `text` and `text_pair` as the one input that they are, in the place of `text`."""
    if "text" not in parts:
        raise InvalidInput("a part 'text_pair' came without its 'text'")
    pair = {name: _single(name, parts[name]) for name in ("text", "text_pair")}
    joined = {name: Content([pair]) if name == "text" else part for name, part in parts.items()}
    del joined["text_pair"]
    return joined


def _single(name: str, part: Content) -> object:
    if not part.is_single:
        raise InvalidInput(f"part {names_of([name])} holds a list; where several parts come, each is one input")
    return part.inputs[0]


ADAPTER = TorchServe()
