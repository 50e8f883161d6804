"""One row as TorchServe 0.12 hands it over, and by which of its paths and protocols it came.

A row is one HTTP or gRPC request: `{"body": ...}` for a raw body, one key per part of a form, one key per entry of
gRPC's map, and one key per query parameter. The handler sees no path and no protocol. What TorchServe's front end
adds to the request headers tells them apart:

| came by | request headers that reach the handler |
|---|---|
| REST, any path | the client's, and always Content-Length: the front end sets it if the client sent none |
| /predictions, /explanations | also `url_path` (what follows NAME/VERSION/) and `explain` |
| /v1/models/NAME:predict and :explain, /v2/models/NAME/infer | also `explain`, and no `url_path` |
| management, customized=true | the client's, and `describe: True`; the row has no parameter at all |
| gRPC Predictions, StreamPredictions | none |
| gRPC StreamPredictions2 | ts_request_sequence_id and its like |
| gRPC DescribeModel with customized | `describe` alone |
| gRPC ModelInfer of the open inference protocol | none, and the one parameter `body` has a content type |

A parameter (a part of a form, an entry of gRPC's map, the raw body) has its content type under its own name, as a
dict. A request header is a string. So the name of a part or entry is never mistaken for a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from handlers.protocol import charsets
from handlers.protocol.errors import InvalidInput, InvalidOption, UnknownPath, UnsupportedMediaType

SEQUENCE = "ts_request_sequence_id"
# Query parameters by which TorchServe's /invocations finds the model; they arrive with the rest.
ROUTING = ("model_name", "model_version")
UNCODED = {  # header: its values that leave a body as it is
    "content-encoding": ("", "identity"),
    "transfer-encoding": ("", "chunked", "identity"),
    "content-transfer-encoding": ("", "7bit", "8bit", "binary"),
}


@dataclass(frozen=True)
class Row:
    """One request as TorchServe hands it over.

    Args:
        parameters: the raw body, the parts or entries, and the query parameters, by name.
        headers: request headers by lower-case name.
        content_types: the parameters' content types, by the parameter's name; "" for none.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_types: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parameters: Mapping[str, Any], sent: Mapping[str, Any]) -> Row:
        """Return the row of these parameters.

        A header that came in two spellings counts as one with both values, joined by a comma (RFC 9110, 5.3).

        Args:
            parameters: what TorchServe puts into the batch for the request.
            sent: what its context holds as the request's headers.
        """
        headers: dict[str, str] = {}
        types: dict[str, str] = {}
        for name, value in sent.items():
            if isinstance(value, str):
                name = name.lower()
                if headers.setdefault(name, value) != value:
                    headers[name] = _both(name, sent)
            elif isinstance(value, Mapping):
                types[name] = str(value.get("content-type") or "")
        return cls(parameters, headers, types)

    def header(self, name: str) -> str:
        """Return the value of a request header by its lower-case name; "" if it did not come."""
        return self.headers.get(name, "")

    @property
    def content_type(self) -> tuple[str, str | None]:
        """The whole body's media type in lower case ("" for none), and its charset if one is declared."""
        return charsets.content_type(self.header("content-type"))

    @property
    def is_multipart(self) -> bool:
        """Whether the body is a form in parts, which TorchServe has taken apart."""
        return self.content_type[0].startswith("multipart/")

    @property
    def is_plain(self) -> bool:
        """Whether the row came by HTTP to /predictions/NAME itself, and does not ask for the description.

        Then the path says no more of its protocol; the body may.
        """
        headers = self.headers
        return headers.get("url_path") == "" and "content-length" in headers and "describe" not in headers

    @property
    def url_path(self) -> str:
        """What follows /predictions/NAME/VERSION/ in the path, as "v1/embeddings"; "" for nothing."""
        sent = self.headers.get("url_path")
        return ", ".join(path for path in sent.split(", ") if path).strip("/ ") if sent else ""

    @property
    def is_kserve(self) -> bool:
        """Whether the row came by a KServe path, v1 or v2: nothing in the headers tells these two apart."""
        return "explain" in self.headers and "url_path" not in self.headers

    @property
    def is_grpc(self) -> bool:
        """Whether the row came by gRPC.

        A REST client cannot fake it, and so cannot make TorchServe wait for the rest of a stream: a REST request
        without Content-Length is given one by the front end. No gRPC client can hide it, since it sets no header.
        """
        return "content-length" not in self.headers

    @property
    def is_unanswerable(self) -> bool:
        """Whether an answer would end the worker: TorchServe throws at it, in the thread that the worker hangs on.

        StreamPredictions2 is for models that keep state. TorchServe fails the call of any other by itself, and hands
        the row on nevertheless; an answer then meets a finished call ("Stream is already completed").
        """
        return self.is_grpc and SEQUENCE in self.headers

    @property
    def is_open_inference_grpc(self) -> bool:
        """Whether the row came by the gRPC service of the open inference protocol, which is off by default.

        TorchServe reads every answer to it as that protocol's. No other gRPC call gives a parameter a content type.
        """
        return self.is_grpc and not self.headers and self.content_types.get("body", "") != ""

    @property
    def wants_description(self) -> bool:
        """Whether the management port asks for the model's description.

        Its row has no parameter. A REST request for inference always has one (the body, if empty), unless it has the
        content type of a form. So no request with a content type is taken for the management port's.
        """
        asked = self.header("describe") == "True"
        return asked and not self.parameters and "content-type" not in self.headers

    def object_with(self, key: str) -> Mapping[str, Any] | None:
        """Return the body's JSON object if it holds `key`; None if it does not, or is none that can be read.

        TorchServe parses a body that is declared as JSON, unless the worker is told to leave it as it came.
        """
        body = self.parameters.get("body")
        if isinstance(body, (bytes, bytearray)):
            media_type = self.content_type[0]
            may_be_json = media_type.endswith("json") or media_type in charsets.UNSPECIFIC
            if not (may_be_json and body[:64].lstrip().startswith(b"{")) or f'"{key}"'.encode() not in body:
                return None
            try:
                body = orjson.loads(body)
            except orjson.JSONDecodeError:
                return None
        return body if isinstance(body, Mapping) and key in body else None

    def refuse_codings(self) -> None:
        """Raises RequestError if the body is a part of one, or compressed or otherwise coded."""
        if "content-range" in self.headers:
            raise InvalidInput("the header Content-Range says that this is a part; wanted: the whole in one request")
        for name, plain in UNCODED.items():
            for coding in self.header(name).lower().split(",") if name in self.headers else ():
                if coding.strip() not in plain:
                    gzip = "; of content-encodings gzip and deflate are decoded" if name == "content-encoding" else ""
                    raise UnsupportedMediaType(f"the body came with a {name}; send it as it is, without one{gzip}")

    def refuse_body(self) -> None:
        """Raises InvalidInput if something came with a request that asks for nothing of the model."""
        if any(self.parameters.values()):
            raise InvalidInput("this path takes no body; it is for GET")

    def refuse_other_paths(self) -> None:
        """Raises RequestError if a path or a header has a meaning that /predictions/NAME would pass over."""
        if self.header("url_path").replace(",", "").strip():
            raise UnknownPath("no protocol has this path behind /predictions/NAME/VERSION; docs/api.md lists them")
        self.refuse_other_headers()

    def refuse_other_headers(self) -> None:
        """Raises RequestError if a header has a meaning that a path of one protocol would pass over."""
        self.refuse_explanations()
        if "inference-header-content-length" in self.headers:
            raise InvalidInput(
                "the header Inference-Header-Content-Length is of KServe's protocol v2, which has a path of its own: "
                "POST /v2/models/NAME/infer"
            )
        self.refuse_describe()

    def refuse_explanations(self) -> None:
        """Raises UnknownPath if an explanation is asked for."""
        if "true" in self.header("explain").lower():
            raise UnknownPath("explanations are not offered; ask /predictions/NAME")

    def refuse_describe(self) -> None:
        """Raises InvalidOption for the header by which TorchServe's management port asks for the description."""
        if self.header("describe") == "True":
            raise InvalidOption(
                "the header describe is TorchServe's own; the model's description is at the management port: GET "
                "/models/NAME?customized=true, without a content type"
            )


def _both(name: str, sent: Mapping[str, Any]) -> str:
    """All values of a header, by its lower-case name, that came in several spellings."""
    return ", ".join(sorted({value for key, value in sent.items() if key.lower() == name and isinstance(value, str)}))
