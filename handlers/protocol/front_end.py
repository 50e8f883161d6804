"""What TorchServe 0.12 tells of a row beside its inputs: headers, content types, and by which of its doors it came.

The handler sees no path and no protocol. What its front end adds to a row tells them apart:

| door | request headers that reach the handler |
|---|---|
| REST, any path | the client's, and always Content-Length: the front end sets it where the client sent none |
| /predictions, /explanations | also `url_path` (what follows NAME/VERSION/) and `explain` |
| /v1/models/NAME:predict and :explain, /v2/models/NAME/infer | also `explain`, and no `url_path` |
| management, customized=true | the client's, and `describe: True`; the row has no parameter at all |
| gRPC Predictions, StreamPredictions | none |
| gRPC StreamPredictions2 | ts_request_sequence_id and its like |
| gRPC DescribeModel with customized | `describe` alone |

A parameter (a part of a form, an entry of gRPC's map, the raw body) gives its content type under its own name, as a
dict. A request header is a string. So no name of a part or entry is ever mistaken for a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handlers.protocol.errors import InvalidInput, InvalidOption, RequestError, UnknownPath, UnsupportedMediaType

SEQUENCE = "ts_request_sequence_id"
KSERVE = (
    "KServe's protocol v2 is not offered; v1 is: POST /v1/models/NAME:predict with a JSON object that holds "
    '"instances". Everything else is for /predictions/NAME'
)
UNCODED = {  # header: its values that leave a body as it is
    "content-encoding": ("", "identity"),
    "transfer-encoding": ("", "chunked", "identity"),
    "content-transfer-encoding": ("", "7bit", "8bit", "binary"),
}


@dataclass(frozen=True)
class Front:
    """A row's request headers by lower-case name, and its parameters' content types by name."""

    headers: Mapping[str, str]
    types: Mapping[str, str]

    @classmethod
    def of(cls, sent: Mapping[str, Any]) -> Front:
        """From what TorchServe's context holds for the row.

        A header that came in two spellings counts as one with both values, joined by a comma (RFC 9110, 5.3).
        """
        values: dict[str, set[str]] = {}
        for name, value in sent.items():
            if isinstance(value, str):
                values.setdefault(name.lower(), set()).add(value)
        types = {
            name: str(value.get("content-type") or "") for name, value in sent.items() if isinstance(value, Mapping)
        }
        return cls({name: ", ".join(sorted(held)) for name, held in values.items()}, types)

    @property
    def grpc(self) -> bool:
        """Whether the row came by gRPC.

        A REST client cannot fake it, and so cannot make TorchServe wait for the rest of a stream: a REST request
        without Content-Length is given one by the front end. No gRPC client can hide it, since it sets no header.
        """
        return "content-length" not in self.headers

    @property
    def unanswerable(self) -> bool:
        """Whether an answer would end the worker: TorchServe throws at it, in the thread that the worker hangs on.

        StreamPredictions2 is for models that keep state. TorchServe fails the call of any other by itself, and hands
        the row on nevertheless; an answer then meets a finished call ("Stream is already completed"). The gRPC
        service of the open inference protocol, off by default, gives its one parameter a content type, and reads
        every answer as that protocol's.
        """
        return self.grpc and (SEQUENCE in self.headers or (not self.headers and self.types.get("body", "") != ""))

    @property
    def kserve(self) -> bool:
        """Whether the row came by a KServe path, v1 or v2: nothing tells these two apart."""
        return "explain" in self.headers and "url_path" not in self.headers

    def wants_description(self, row: Mapping[str, Any]) -> bool:
        """Whether the management port asks for the model's description.

        Its row has no parameter. A REST request for inference always has one (the body, if empty), unless it has the
        content type of a form. So no request with a content type is taken for the management port's.
        """
        return self.headers.get("describe") == "True" and not row and "content-type" not in self.headers

    def refuse(self) -> None:
        """Raises RequestError for a path or a header with a meaning that would be passed over."""
        for problem in (self._path(), self._protocol(), self._coding()):
            if problem is not None:
                raise problem

    def _path(self) -> RequestError | None:
        if set(self.headers.get("url_path", "").split(", ")) - {""}:
            return UnknownPath("nothing is offered behind /predictions/NAME/VERSION; ask that path itself")
        if "true" in self.headers.get("explain", "").lower():
            return UnknownPath("explanations are not offered; ask /predictions/NAME")
        return None

    def _protocol(self) -> RequestError | None:
        if "inference-header-content-length" in self.headers:
            return InvalidInput(
                f"the header Inference-Header-Content-Length is of a protocol that is not read: {KSERVE}"
            )
        if self.headers.get("describe") == "True":
            return InvalidOption(
                "the header describe is TorchServe's own; the model's description is at the management port: GET "
                "/models/NAME?customized=true, without a content type"
            )
        if "content-range" in self.headers:
            return InvalidInput("the header Content-Range says that this is a part; wanted: the whole in one request")
        return None

    def _coding(self) -> RequestError | None:
        for name, plain in UNCODED.items():
            for coding in self.headers.get(name, "").lower().split(","):
                if coding.strip() not in plain:
                    return UnsupportedMediaType(f"the body came with a {name}; send it as it is, without one")
        return None
