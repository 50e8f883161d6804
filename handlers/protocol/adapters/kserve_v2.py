"""KServe v2, the Open Inference Protocol: POST /v2/models/NAME/infer with tensors is answered with tensors.

TorchServe hands over no other path of the protocol, so all of them are offered behind /predictions/NAME/VERSION too:
a client takes that as its base URL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from handlers.protocol import bodies, charsets, encodings, options
from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.content import merged
from handlers.protocol.errors import InvalidInput, RequestError, UnsupportedMediaType
from handlers.protocol.interface import Interface
from handlers.protocol.open_inference import envelope, inputs, metadata, outputs, paths
from handlers.protocol.open_inference.envelope import Envelope, Wish
from handlers.protocol.request import Request
from handlers.protocol.row import Row

ACCEPTED = (encodings.JSON, encodings.RAW)


class KServeV2(Adapter):
    """Reads tensors of texts, of images' files, and of pixels."""

    priority = 2  # the path of KServe v1 looks the same
    by_path = True

    def claims(self, row: Row) -> bool:
        if row.is_kserve:
            return envelope.HEADER in row.headers or _is_envelope(row.parameters.get("body"))
        return row.url_path == "v2" or row.url_path.startswith(paths.BEGINNINGS)

    def read(self, row: Row, model: Interface) -> Request:
        row.refuse_explanations()
        row.refuse_describe()
        asked = paths.asked(row, model)
        if asked == "infer":
            return self._infer(row, model)
        row.refuse_body()
        return Request(self, combine=lambda answers: json_answer(metadata.of(asked, model)))

    def _infer(self, row: Row, model: Interface) -> Request:
        _refuse_other_bodies(row)
        encodings.media_type(row.header("accept"), ACCEPTED)
        sent = envelope.read(*envelope.split(row))
        chosen = {
            name: options.read(name, value, model, f"parameter {name}") for name, value in sent.parameters.items()
        }
        together = merged(options.of_row(row, model), chosen)
        wishes = outputs.check(sent, together, model)
        found = inputs.inputs_of(sent.tensors, model)
        if outputs.gives_embeddings(model.task) and any(wish.is_binary for wish in wishes):
            together["encoding_format"] = encodings.EXACT
        return Request(self, found, together, _combined(model, sent, wishes, together))

    def write(self, request: Request) -> Answer:
        return cast("Answer", request.combine(request.answers))

    def write_error(self, error: RequestError) -> Answer:
        return json_answer({"error": error.message, **error.request_ids.fields()}, error.status)


def _is_envelope(body: object) -> bool:
    """Whether a body is an object with "inputs", and not one of KServe v1, with "instances".

    JSON is only parsed if the bytes leave it open. Inside a string both words would have backslashes.
    """
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    if isinstance(body, (bytes, bytearray)):
        if b'"inputs"' not in body or b'"instances"' not in body:
            return b'"inputs"' in body
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError:
            return False
    return isinstance(body, dict) and "inputs" in body and "instances" not in body


def _refuse_other_bodies(row: Row) -> None:
    """Raises RequestError for a body that is neither JSON nor JSON followed by raw bytes."""
    media_type = row.content_type[0]
    if not bodies.Part("the body", media_type, None).is_json and media_type not in charsets.UNSPECIFIC:
        raise UnsupportedMediaType(
            f"the body came as {media_type[:80]}; wanted: application/json, or application/octet-stream for "
            "JSON that is followed by raw bytes"
        )
    if row.parameters.keys() - {"body"}:
        raise InvalidInput("this path takes a body, and neither parts nor query parameters")


def _combined(model: Interface, sent: Envelope, wishes: Sequence[Wish], chosen: Mapping[str, Any]) -> Any:
    """The function that makes of the model's answers what the client gets."""
    head = {"model_name": model.name, "model_version": model.version}
    if sent.id is not None:
        head["id"] = sent.id

    def combine(answers: Sequence[Any]) -> Answer:
        return outputs.write(head, outputs.make(model.task, answers, chosen), wishes)

    return combine


ADAPTER = KServeV2()
