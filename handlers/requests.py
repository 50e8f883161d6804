"""TorchServe rows -> requests with inputs or an error each; results -> one answer a row, in order.

A row is one HTTP or gRPC request as TorchServe 0.12 hands it over: `{"body": ...}` for a raw body, one key per
part for multipart, plus one key per query parameter. Bodies come parsed or as bytes, depending on content type
and on `decode_input_request`; both are read here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import orjson

from handlers.errors import (
    EmptyRequest,
    InferenceFailed,
    InvalidInput,
    InvalidJson,
    InvalidOption,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)

T = TypeVar("T")
R = TypeVar("R")

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
# Query parameters by which TorchServe's /invocations finds the model; they arrive with the rest.
ROUTING = ("model_name", "model_version")
PART_HEADERS = 2048  # bytes that a part's headers may have: a file's name comes percent-encoded, maybe twice


class Context(Protocol):
    """What a handler uses of `ts.context.Context`."""

    model_name: str
    manifest: dict[str, Any] | None
    system_properties: dict[str, Any]
    model_yaml_config: dict[str, Any]
    metrics: Any

    def get_all_request_header(self, idx: int) -> dict[str, Any]: ...
    def set_response_status(self, code: int, phrase: str, idx: int) -> None: ...
    def set_response_content_type(self, idx: int, value: str) -> None: ...


@dataclass
class Request:
    """One row on its way through the handler.

    payloads: what the client sent, one entry an input: bytes, or a value from JSON.
    shape: "one" answers the input itself, "list" a list in the same order, "instances" the KServe v1 form
        `{"predictions": [...]}` for `{"instances": [...]}`.
    options: query or JSON parameters by name, validated.
    inputs: the decoded inputs, results: their answers; same length and order as payloads.
    """

    payloads: list[Any] = field(default_factory=list)
    shape: str = "one"
    options: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    error: RequestError | None = None
    description: dict[str, Any] | None = None

    @property
    def open(self) -> bool:
        """Whether this request still wants the model."""
        return self.error is None and self.description is None

    def check(self, refuse: Callable[..., object], *arguments: object) -> None:
        """Keep the RequestError that refuse(*arguments) may raise as this request's own."""
        try:
            refuse(*arguments)
        except RequestError as error:
            self.error = error

    def answer(self) -> object:
        if self.error is not None:
            return self.error.body()
        if self.description is not None:
            return self.description
        if self.shape == "instances":
            return {"predictions": self.results}
        return self.results[0] if self.shape == "one" else self.results


OptionReader = Callable[[object], object]


@dataclass(frozen=True)
class Reader:
    """Reads the rows of one model.

    options: by name, a function that turns the sent value (str or JSON value) into the valid one or raises
        ValueError with what is wanted. They come as a header (X-Top-K for top_k), as a multipart field, as a query
        parameter (which TorchServe drops on /predictions and keeps on /invocations), or in JSON's "parameters".
    media: says in a message what the model takes.
    accepts: whether a raw body of this content type (lower case, "" for none) can be an input.
    max_inputs: inputs that one request may bring.
    """

    options: Mapping[str, OptionReader]
    media: str
    accepts: Callable[[str], bool]
    max_inputs: int

    def read(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[Request]:
        """All rows of a batch; never raises for what a client sent."""
        requests = []
        for index, row in enumerate(rows):
            request = Request()
            requests.append(request)
            headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
            if headers.get("describe") == "True":  # how TorchServe asks for customized=true
                request.description = {}
                continue
            request.check(self._read_row, row, headers, request)
        return requests

    def _read_row(self, row: Mapping[str, Any], headers: Mapping[str, Any], request: Request) -> None:
        media_type = _media_type(headers.get("content-type"))
        for name in self.options:
            sent = row.get(name, headers.get(header_of(name)))
            if sent is not None:
                request.options[name] = self._option(name, _text(sent))
        values = {name: value for name, value in row.items() if name not in (*self.options, *ROUTING)}
        if "body" in values and not media_type.startswith("multipart/"):
            unknown = values.keys() - {"body"}
            if unknown:
                raise InvalidOption(f"unknown query parameter {names_of(unknown)}; known: {self._known()}")
            self._read_body(values["body"], media_type, request)
        elif media_type == FORM:
            raise UnsupportedMediaType(
                f"the body came as {FORM}, which is what curl -d sends unless told otherwise; wanted: {self.media}"
            )
        else:
            self._read_parts(values, headers, request)
        if not request.payloads:
            raise EmptyRequest(f"the request holds no input; wanted: {self.media}")
        self.refuse_many(len(request.payloads))

    def refuse_many(self, count: int) -> None:
        """Raises PayloadTooLarge for more inputs than one request may bring."""
        if count > self.max_inputs:
            raise PayloadTooLarge(f"the request holds {count} inputs; at most {self.max_inputs} go into one request")

    def _read_body(self, value: object, media_type: str, request: Request) -> None:
        if media_type == JSON or media_type.endswith("+json"):
            self._read_json(_json(value), request)
        elif not self.accepts(media_type):
            raise UnsupportedMediaType(f"the body came as {media_type}; wanted: {self.media}")
        elif _is_empty(value):
            raise EmptyRequest(f"the body is empty; wanted: {self.media}")
        else:
            request.payloads = [value]

    def _read_parts(self, parts: Mapping[str, Any], headers: Mapping[str, Any], request: Request) -> None:
        """Multipart, one input a part; gRPC, one input an entry of its map."""
        for name, value in parts.items():
            described = headers.get(name.lower())
            media_type = _media_type(described.get("content-type")) if isinstance(described, dict) else ""
            if media_type and not self.accepts(media_type):
                raise UnsupportedMediaType(f"part {names_of([name])} came as {media_type}; wanted: {self.media}")
            if _is_empty(value):
                raise EmptyRequest(f"part {names_of([name])} is empty; wanted: {self.media}")
            request.payloads.append(value)
        request.shape = "one" if len(parts) == 1 else "list"
        _refuse_lost_parts(parts, headers)

    def _read_json(self, value: object, request: Request) -> None:
        if isinstance(value, dict) and "instances" in value:
            request.shape = "instances"
            request.options |= self._json_options(value)
            value = value["instances"]
            if not isinstance(value, list):
                raise InvalidInput(f'"instances" holds {kind_of(value)}; wanted: a list')
        elif isinstance(value, list):
            request.shape = "list"
        if isinstance(value, list):
            if not value:
                raise EmptyRequest(f"the list is empty; wanted: {self.media}")
            request.payloads = value
        else:
            request.payloads = [value]

    def _json_options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        unknown = body.keys() - {"instances", "parameters"}
        if unknown:
            raise InvalidInput(f'unknown key {names_of(unknown)} beside "instances"; known: "parameters"')
        parameters = body.get("parameters", {})
        if not isinstance(parameters, dict):
            raise InvalidInput(f'"parameters" holds {kind_of(parameters)}; wanted: an object')
        return {name: self._option(name, value) for name, value in parameters.items()}

    def _option(self, name: str, value: object) -> object:
        if name not in self.options:
            raise InvalidOption(f"unknown parameter {names_of([name])}; known: {self._known()}")
        try:
            return self.options[name](value)
        except ValueError as error:
            raise InvalidOption(f"parameter {name}: {error}") from None

    def _known(self) -> str:
        return ", ".join(sorted(self.options)) or "none"


def describe(requests: Iterable[Request], description: Mapping[str, Any]) -> None:
    """Answer those rows that ask for the model's description."""
    for request in requests:
        if request.description is not None:
            request.description = dict(description)


def gather(requests: Iterable[Request], stage: str) -> list[Any]:
    """What all open requests hold in `stage` ("payloads" or "inputs"), in order."""
    return [item for request in requests if request.open for item in getattr(request, stage)]


def gather_options(requests: Iterable[Request], stage: str) -> list[Mapping[str, Any]]:
    """For each item of `gather(requests, stage)`, its request's options."""
    return [request.options for request in requests if request.open for _ in getattr(request, stage)]


def gather_owners(requests: Iterable[Request], stage: str) -> list[int]:
    """For each item of `gather(requests, stage)`, its request's index."""
    return [place for place, request in enumerate(requests) if request.open for _ in getattr(request, stage)]


def scatter(requests: Iterable[Request], values: Iterable[object], source: str, target: str) -> None:
    """Hand one value for each item of `gather(requests, source)` back to its request's `target`.

    A value that is a RequestError becomes the error of its whole request, and of no other.
    """
    remaining = iter(values)
    for request in requests:
        if not request.open:
            continue
        count = len(getattr(request, source))
        mine = [next(remaining) for _ in range(count)]
        errors = [(place, value) for place, value in enumerate(mine, 1) if isinstance(value, RequestError)]
        if errors:
            place, request.error = errors[0]
            if count > 1:
                request.error = type(request.error)(f"input {place} of {count}: {request.error.message}")
        setattr(request, target, mine)


def caught(work: Callable[[T], R]) -> Callable[[T], R | RequestError]:
    """`work`, with a RequestError returned instead of raised."""

    def attempt(item: T) -> R | RequestError:
        try:
            return work(item)
        except RequestError as error:
            return error

    return attempt


def write(requests: Sequence[Request], context: Context) -> list[bytes]:
    """One JSON answer a row, in order, with its status and content type set on the context."""
    answers = []
    for index, request in enumerate(requests):
        try:
            body = orjson.dumps(request.answer(), option=orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError:
            request.error = InferenceFailed("the model's answer could not be written as JSON")
            body = orjson.dumps(request.error.body())
        status = request.error.status if request.error else 200
        context.set_response_status(status, HTTPStatus(status).phrase, index)
        context.set_response_content_type(index, JSON)
        answers.append(body)
    return answers


def _json(value: object) -> object:
    """A JSON body, parsed by TorchServe already or (invalid, or told not to) still bytes."""
    if not isinstance(value, (bytes, bytearray)):
        return value
    if not value.strip():
        raise EmptyRequest("the body is empty; wanted: JSON, as its content type says")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidJson(f"the body is not valid JSON: {error.msg} at {where}") from None


def header_of(option: str) -> str:
    """The request header that carries an option: "x-top-k" for "top_k"."""
    return "x-" + option.replace("_", "-")


def _refuse_lost_parts(parts: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    """TorchServe keeps one part of each name: say so where the bytes of another are clearly gone.

    A part costs its boundary, its name and its own headers, so bytes of the request's Content-Length beyond that
    belong to parts that never arrived here. A lost part of less than PART_HEADERS goes unseen.
    """
    declared = str(headers.get("content-length", ""))
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        return
    # TorchServe hands text parts over decoded; of parsed JSON nobody knows here how long it was.
    sent = [value.encode("utf-8", "replace") if isinstance(value, str) else value for value in parts.values()]
    if not all(isinstance(value, (bytes, bytearray)) for value in sent):
        return
    arrived = sum(map(len, sent))
    boundary = len(str(headers.get("content-type", "")))
    around = boundary + sum(PART_HEADERS + boundary + len(name) for name in parts)
    if int(declared) - arrived > around:
        raise InvalidInput(
            f"{declared} bytes came and {arrived} of them in {len(parts)} distinct parts: parts with the same name "
            "replace each other; give each part a name of its own"
        )


def _media_type(value: object) -> str:
    return str(value or "").split(";")[0].strip().lower()


def _is_empty(value: object) -> bool:
    return isinstance(value, (str, bytes, bytearray)) and len(value) == 0


def _text(value: object) -> object:
    """A query parameter's value: TorchServe hands it over as bytes."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", errors="replace")
    return value


def names_of(names: Collection[str]) -> str:
    """Names that a client chose, cut to what an error message can bear; repr, since not all are valid UTF-8."""
    return ", ".join(repr(name[:40]) for name in sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def kind_of(value: object) -> str:
    """A JSON value's type in JSON's own words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def whole_number(low: int, high: int) -> OptionReader:
    """An option that takes a whole number from low to high."""

    def read(value: object) -> int:
        text = value if isinstance(value, str) else str(value) if type(value) is int else ""
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise ValueError(f"wanted: a whole number from {low} to {high}")
        return int(text)

    return read


def yes_or_no(value: object) -> bool:
    """An option that takes true or false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("wanted: true or false")
