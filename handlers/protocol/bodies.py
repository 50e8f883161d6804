"""A raw body, a part of a form or an entry of gRPC's map -> parsed JSON, or the value itself."""

from __future__ import annotations

import re
from typing import NamedTuple

from handlers.protocol import charsets
from handlers.protocol.errors import EmptyRequest, InvalidInput, InvalidJson, UnsupportedMediaType
from handlers.protocol.interface import Interface
from handlers.protocol.wording import kind_of

# How files begin, and their media types. Neither JSON nor a text begins so.
FILES = (
    (re.compile(rb"\x89PNG\r\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), "image/bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
    (re.compile(rb"\x93NUMPY"), "application/octet-stream"),  # .npy
)


class Part(NamedTuple):
    """What is known of a value before it is read.

    Args:
        what: names it in messages: "the body", "part 'a'".
        media_type: in lower case, "" for none.
        charset: as declared.
    """

    what: str
    media_type: str
    charset: str | None

    @property
    def is_json(self) -> bool:
        """Whether its content type says that it is JSON."""
        return self.media_type == charsets.JSON or self.media_type.endswith("+json")


class Body(NamedTuple):
    """A value that was read: parsed JSON, or what the client sent, decoded if the model takes texts."""

    value: object
    is_json: bool


def read(value: object, part: Part, model: Interface) -> Body:
    """Return what a value holds.

    It is JSON if its content type says so, or if it parses as JSON and no content type says anything.

    Raises EmptyRequest, InvalidInput, InvalidJson or UnsupportedMediaType.
    """
    if part.is_json:
        return Body(_json(value, part, model), is_json=True)
    if not model.accepts(part.media_type):
        raise UnsupportedMediaType(f"{part.what} came as {part.media_type[:80]}; wanted: {model.wanted}")
    if isinstance(value, (str, bytes, bytearray)) and len(value) == 0:
        raise EmptyRequest(f"{part.what} is empty; wanted: {model.wanted}")
    if model.takes_texts:
        value = _decoded(value, part)
    elif isinstance(value, (bytes, bytearray)):
        charsets.refuse_compressed(value, part.what)
    found = _undeclared_json(value, part, model)
    return Body(value, is_json=False) if found is charsets.NOT_JSON else Body(found, is_json=True)


def _json(value: object, part: Part, model: Interface) -> object:
    if not isinstance(value, (bytes, bytearray)):  # parsed by TorchServe, as UTF-8
        charsets.refuse_other_charset(part.charset, part.what)
        return value
    if not value.strip():
        raise EmptyRequest(f"{part.what} is empty; wanted: JSON, as its content type says")
    _refuse_file(value, part, model)
    return charsets.json(value, part.charset, part.what)


def _refuse_file(value: bytes | bytearray, part: Part, model: Interface) -> None:
    """Raises InvalidJson for a file that came with the content type of JSON."""
    kind = next((kind for magic, kind in FILES if magic.match(value)), None)
    if kind is not None:
        way = f"send it as {kind}, or in base64 in JSON" if model.takes_images else f"wanted: {model.wanted}"
        raise InvalidJson(f"{part.what} came as {part.media_type} and is a file of {kind}; {way}")


def _decoded(value: object, part: Part) -> object:
    """A text: TorchServe may have decoded it, as UTF-8 whatever its charset."""
    if isinstance(value, str):
        try:
            value = value.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, which the model refuses with its position
            return value
    return charsets.text(value, part.charset, part.what) if isinstance(value, (bytes, bytearray)) else value


def _undeclared_json(value: object, part: Part, model: Interface) -> object:
    """Parsed JSON that no content type declares, or NOT_JSON.

    A number, true, false and null are JSON and no input, so a model of texts refuses them: a client that sends them
    may mean either.
    """
    if part.media_type not in charsets.UNSPECIFIC or not isinstance(value, (str, bytes, bytearray)):
        return charsets.NOT_JSON
    found = charsets.undeclared_json(value, part.what)
    if found is charsets.NOT_JSON or isinstance(found, (str, list, dict)):
        return found
    if not model.takes_texts:
        return charsets.NOT_JSON
    raise InvalidInput(
        f"{part.what} is JSON and holds {kind_of(found)}, which is no input; if it is meant as a text, send it as "
        "text/plain, or in quotes"
    )
