"""TorchServe rows -> requests with inputs, or with an error each.

A row is one HTTP or gRPC request as TorchServe 0.12 hands it over: `{"body": ...}` for a raw body, one key per
part for multipart, plus one key per query parameter. Bodies come parsed or as bytes, depending on content type
and on `decode_input_request`; both are read here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.protocol import charsets, encodings, unexpected
from handlers.protocol.context import Context
from handlers.protocol.errors import (
    EmptyRequest,
    InvalidInput,
    InvalidOption,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)
from handlers.protocol.front_end import KSERVE, Front
from handlers.protocol.options import OptionReader, header_of
from handlers.protocol.request import Request
from handlers.protocol.wording import kind_of, names_of

FORM = "application/x-www-form-urlencoded"
# Query parameters by which TorchServe's /invocations finds the model; they arrive with the rest.
ROUTING = ("model_name", "model_version")
# Fields that are inputs though they come without a file's name: text, text_2, data; 0, 1, 2. Others may be options.
INPUT_NAMES = re.compile(
    r"(?:body|data|file|input|part|sentence|text)?[_-]?\d+|body|data|file|input|sentence|text(?:_pair)?"
)
# What the value of an option may look like, and no image does.
OPTION_LIKE = re.compile(rb"[ -~]{0,100}")
# Of all models: a header with the name of another model's option is not passed over.
EVERY_OPTION = ("top_k", "truncate", "encoding_format", "dtype")
ENVELOPES = {
    "inputs": "KServe v2 and Hugging Face's servers",
    "input": "OpenAI's API",
    "messages": "OpenAI's API",
    "prompt": "OpenAI's API",
}
PART_HEADERS = 2048  # bytes that a part's headers may have: a file's name comes percent-encoded, maybe twice


@dataclass(frozen=True)
class Part:
    """What is known of a value before it is read.

    what: names it in messages: "the body", "part 'a'". media_type: in lower case, "" for none. charset: as declared.
    """

    what: str
    media_type: str
    charset: str | None

    @property
    def is_json(self) -> bool:
        return self.media_type == charsets.JSON or self.media_type.endswith("+json")


@dataclass(frozen=True)
class Reader:
    """Reads the rows of one model.

    options: by name, a function that turns the sent value (str or JSON value) into the valid one or raises
        ValueError with what is wanted. They come as a header (X-Top-K for top_k), as a multipart field, as a query
        parameter (which TorchServe drops on /predictions and keeps on /invocations), or in JSON's "parameters".
    media: says in a message what the model takes.
    accepts: whether a body of this content type (lower case, "" for none) can be an input. A model that accepts
        text/plain gets texts as str, decoded.
    max_inputs: inputs that one request may bring.
    forms: media types that an answer can come as; the header Accept chooses. The first is the default.
    """

    options: Mapping[str, OptionReader]
    media: str
    accepts: Callable[[str], bool]
    max_inputs: int
    forms: Sequence[str] = (encodings.JSON,)

    @property
    def takes_text(self) -> bool:
        return self.accepts("text/plain")

    def read(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[Request]:
        """All rows of a batch; never raises for what a client sent, and an error of ours fails its row alone."""
        requests = []
        for index, row in enumerate(rows):
            request = Request()
            requests.append(request)
            try:
                self._read_row(row, Front.of(context.get_all_request_header(index)), request)
            except RequestError as error:
                request.error = error
            except BaseException as error:
                request.error = unexpected.failed(error, "reading the request")
        return requests

    def _read_row(self, row: Mapping[str, Any], front: Front, request: Request) -> None:
        request.grpc, request.unanswerable = front.grpc, front.unanswerable
        if front.wants_description(row):
            request.description = {}
            return
        if front.unanswerable:  # nobody will read this; the model need not run
            raise InvalidInput("this protocol is not offered; wanted: gRPC's Predictions or StreamPredictions")
        front.refuse()
        request.form = encodings.media_type(front.headers.get("accept", ""), self.forms)
        self._read_options(row, front.headers, request)
        values = {name: value for name, value in row.items() if name not in (*self.options, *ROUTING)}
        media_type, charset = charsets.content_type(front.headers.get("content-type", ""))
        form = media_type.startswith("multipart/")
        if media_type == FORM:
            raise UnsupportedMediaType(
                f"the body came as {FORM}, which is what curl -d sends unless told otherwise; wanted: {self.media}"
            )
        if form and front.types.get("body", "").lower().startswith("multipart/"):
            raise UnsupportedMediaType(
                "the body is no form that can be read; wanted: multipart/form-data; boundary=..."
            )
        if "body" in values and not form:
            self._read_body(values, Part("the body", media_type, charset), request)
        else:
            self._read_parts(values, front, request)
        if not request.payloads:
            raise EmptyRequest(f"the request holds no input; wanted: {self.media}")
        if front.kserve and request.shape != "instances":
            raise InvalidInput(f'this path takes a JSON object that holds "instances". {KSERVE}')
        encodings.check(request.options, request.form)
        if request.form != encodings.JSON:
            request.options["encoding_format"] = "bytes"
        self.refuse_many(len(request.payloads))

    def refuse_many(self, count: int) -> None:
        """Raises PayloadTooLarge for more inputs than one request may bring."""
        if count > self.max_inputs:
            raise PayloadTooLarge(f"the request holds {count} inputs; at most {self.max_inputs} go into one request")

    def _read_options(self, row: Mapping[str, Any], headers: Mapping[str, str], request: Request) -> None:
        for name in headers:
            self._refuse_misspelt(name)
        for name in self.options:
            sent = row.get(name, headers.get(header_of(name)))
            if sent is not None:
                request.options[name] = self._option(name, _text(sent))

    def _refuse_misspelt(self, header: str) -> None:
        """Raises InvalidOption for a header that means an option and is none of this model: Top-K, top_k, X-TopK."""
        option = self._meanings.get(_meaning(header))
        if option is not None and not (option in self.options and header == header_of(option)):
            known = ", ".join(map(header_of, sorted(self.options))) or "none"
            raise InvalidOption(f"unknown header {names_of([header])}; options that this model has: {known}")

    @functools.cached_property
    def _meanings(self) -> Mapping[str, str]:
        """The option that a header means, by what `_meaning` makes of the header's name."""
        return {_letters(option): option for option in (*EVERY_OPTION, *self.options)}

    def _read_body(self, values: Mapping[str, Any], body: Part, request: Request) -> None:
        unknown = values.keys() - {"body"}
        if unknown:
            raise InvalidOption(f"unknown query parameter {names_of(unknown)}; known: {self._known()}")
        self._read_value(values["body"], body, request)

    def _read_value(self, value: object, part: Part, request: Request) -> None:
        """A body, a part of a form, or an entry of gRPC's map -> payloads.

        It is JSON if its content type says so, or if it parses as JSON and no content type says anything.
        """
        if part.is_json:
            if not isinstance(value, (bytes, bytearray)):  # parsed by TorchServe, as UTF-8
                charsets.refuse_other_charset(part.charset, part.what)
            elif not value.strip():
                raise EmptyRequest(f"{part.what} is empty; wanted: JSON, as its content type says")
            else:
                value = charsets.json(value, part.charset, part.what)
            self._read_json(value, request)
        elif not self.accepts(part.media_type):
            raise UnsupportedMediaType(f"{part.what} came as {part.media_type[:80]}; wanted: {self.media}")
        elif _is_empty(value):
            raise EmptyRequest(f"{part.what} is empty; wanted: {self.media}")
        else:
            self._read_plain(value, part, request)

    def _read_plain(self, value: object, part: Part, request: Request) -> None:
        if self.takes_text:
            value = _decoded(value, part)
        elif isinstance(value, (bytes, bytearray)):
            charsets.refuse_compressed(value, part.what)
        found = self._untold(value, part)
        if found is charsets.NOT_JSON:
            request.payloads = [value]
        else:
            self._read_json(found, request)

    def _untold(self, value: object, part: Part) -> object:
        """Parsed JSON that no content type announces, or NOT_JSON.

        A number, true, false and null are JSON and no input, so they are refused where they may be a text: a client
        that sends them may mean either.
        """
        if part.media_type not in charsets.UNTELLING or not isinstance(value, (str, bytes, bytearray)):
            return charsets.NOT_JSON
        found = charsets.untold_json(value, part.what)
        if found is charsets.NOT_JSON or isinstance(found, (str, list, dict)):
            return found
        if not self.takes_text:
            return charsets.NOT_JSON
        raise InvalidInput(
            f"{part.what} is JSON and holds {kind_of(found)}, which is no input; if it is meant as a text, send it "
            "as text/plain, or in quotes"
        )

    def _read_parts(self, values: Mapping[str, Any], front: Front, request: Request) -> None:
        """Multipart, one input a part; gRPC, one input an entry of its map; `text` and `text_pair` are one input.

        One alone is read as a body is, with lists and "instances".
        """
        for name, value in values.items():
            self._refuse_field(name, value, front.types.get(name, ""))
        parts = {name: self._read_part(name, value, front.types.get(name, "")) for name, value in values.items()}
        if "text_pair" in parts:
            parts = _with_pair(parts)
        if len(parts) == 1:
            (only,) = parts.values()
            request.payloads, request.shape = only.payloads, only.shape
            _take(request, only.options)
        else:
            request.payloads = [_single(name, part) for name, part in parts.items()]
            request.shape = "list"
        if values:
            _refuse_lost_parts(values, front.headers)

    def _refuse_field(self, name: str, value: object, content_type: str) -> None:
        if not content_type and not self._names_input(name, value):
            raise InvalidOption(
                f"unknown field {names_of([name])}; inputs are called data, text, file, text1, text2, ... or come as "
                f"files, with a name and a content type of their own; known options: {self._known()}"
            )

    def _read_part(self, name: str, value: object, content_type: str) -> Request:
        media_type, charset = charsets.content_type(content_type)
        request = Request()
        self._read_value(value, Part(f"part {names_of([name])}", media_type, charset), request)
        return request

    def _names_input(self, name: str, value: object) -> bool:
        """Whether a field that is no file can be an input: it may be an option, misspelt.

        A text may be anything, so its field needs a known name. An image is known by its bytes.
        """
        if INPUT_NAMES.fullmatch(name):
            return True
        return not self.takes_text and not (isinstance(value, (bytes, bytearray)) and OPTION_LIKE.fullmatch(value))

    def _read_json(self, value: object, request: Request) -> None:
        if isinstance(value, dict) and "instances" in value:
            request.shape = "instances"
            _take(request, self._json_options(value))
            value = value["instances"]
            if not isinstance(value, list):
                raise InvalidInput(f'"instances" holds {kind_of(value)}; wanted: a list')
        elif isinstance(value, dict):
            self._refuse_envelope(value)
        elif isinstance(value, list):
            request.shape = "list"
        if isinstance(value, list):
            if not value:
                raise EmptyRequest(f"the list is empty; wanted: {self.media}")
            request.payloads = value
        else:
            request.payloads = [value]

    def _refuse_envelope(self, value: Mapping[str, Any]) -> None:
        for key, whose in ENVELOPES.items():
            if key in value:
                raise InvalidInput(
                    f'an object with "{key}" came, as {whose} has it, which is not read; wanted: {self.media}'
                )

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


def _decoded(value: object, part: Part) -> object:
    """A text: TorchServe may have decoded it, as UTF-8 whatever its charset."""
    if isinstance(value, str):
        try:
            value = value.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, which the model refuses with its place
            return value
    return charsets.text(value, part.charset, part.what) if isinstance(value, (bytes, bytearray)) else value


def _with_pair(parts: Mapping[str, Request]) -> dict[str, Request]:
    """`text` and `text_pair` as the one input that they are, in the place of the former."""
    if "text" not in parts:
        raise InvalidInput("a part 'text_pair' came without its 'text'")
    pair = {name: _single(name, parts[name]) for name in ("text", "text_pair")}
    joined = {name: Request(payloads=[pair]) if name == "text" else part for name, part in parts.items()}
    del joined["text_pair"]
    return joined


def _take(request: Request, options: Mapping[str, Any]) -> None:
    """Add options to a request's own. Raises InvalidOption for one that came before with another value."""
    for name, value in options.items():
        if request.options.setdefault(name, value) != value:
            raise InvalidOption(f"the option {name} came twice, with different values")


def _single(name: str, part: Request) -> object:
    if part.shape != "one":
        raise InvalidInput(f"part {names_of([name])} holds a list; where several parts come, each is one input")
    return part.payloads[0]


@functools.lru_cache(4096)  # most requests have the same headers
def _meaning(header: str) -> str:
    return _letters(header).removeprefix("x")


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _is_empty(value: object) -> bool:
    return isinstance(value, (str, bytes, bytearray)) and len(value) == 0


def _text(value: object) -> object:
    """A query parameter's value: TorchServe hands it over as bytes."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", errors="replace")
    return value
