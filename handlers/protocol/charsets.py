"""Bytes -> text by its charset or byte order mark; bytes without a telling content type -> JSON, or not."""

from __future__ import annotations

import codecs
import encodings
import pkgutil
import re
from encodings.aliases import aliases

import orjson

from handlers.protocol.errors import InvalidInput, InvalidJson, UnsupportedMediaType

JSON = "application/json"
UNSPECIFIC = ("", "application/octet-stream")  # content types that say nothing
# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"x\x9c", "zlib"),
    (b"x\xda", "zlib"),
)
BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
# Python's own escapes and pieces of domain names: nobody's charset.
NO_CHARSETS = ("idna", "mbcs", "oem", "punycode", "raw_unicode_escape", "undefined", "unicode_escape")
# Python keeps a note of each codec that it was asked for in vain: ask for known ones only.
CODECS = {module.name for module in pkgutil.iter_modules(encodings.__path__)} | aliases.keys() | set(aliases.values())
# What JSON can begin with; and what hardly anything but JSON begins with, Python's quotes included. "[MASK] is ..."
# and "[1] A footnote" are texts.
JSON_BEGINS = r"\s*[\[{\"\d\-tfn]"
JSON_MEANT = r"\s*(?:\{\s*[\"'}]|\[\s*[\"'{])"
NOT_JSON = object()


def text(data: bytes | bytearray, charset: str | None = None, what: str = "the text") -> str:
    """Text by its charset, else by its byte order mark, else as UTF-8; a byte order mark is no part of it.

    Raises UnsupportedMediaType for an unknown charset, InvalidInput where the bytes are not what it says.
    """
    if charset is None:
        refuse_compressed(data, what)
    mark, marked = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", None))
    name = marked or "utf-8" if charset is None else _codec(charset)
    if marked and not _agree(name, marked):
        raise InvalidInput(f"{what} came as charset {charset!r} and begins with the byte order mark of {marked}")
    if name in ("utf-16", "utf-32") and not marked:
        raise InvalidInput(f"{what} came as {name} without a byte order mark; say {name}le or {name}be")
    try:
        found = bytes(data[len(mark) :]).decode(marked or name)
    except LookupError:  # a codec that is none of texts
        raise _unknown(charset or "") from None
    except UnicodeError as error:
        refuse_compressed(data, what)
        place = getattr(error, "start", 0) + len(mark)
        raise InvalidInput(f"{what} is not {_named(marked or name)}: byte {place} of {len(data)}") from None
    if "\0" in found:
        raise InvalidInput(f"{what} holds NUL characters, which are no text; UTF-16 has to say so: charset=utf-16le")
    return found


def refuse_compressed(data: bytes | bytearray, what: str) -> None:
    """Raises UnsupportedMediaType for bytes that begin as a compressed file does."""
    name = next((name for magic, name in COMPRESSED if data.startswith(magic)), None)
    if name is None and BZIP2.match(data):
        name = "bzip2"
    if name:
        raise UnsupportedMediaType(f"{what} is compressed ({name}); send it uncompressed")


def json(value: bytes | bytearray, charset: str | None, what: str) -> object:
    """Parsed JSON: of the declared charset or byte order mark, else UTF-8 (RFC 8259). Raises RequestError."""
    refuse_compressed(value, what)
    other = charset is not None or value.startswith(tuple(mark for mark, _ in MARKS))
    try:
        return orjson.loads(text(value, charset, what) if other else value)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"{what} is not valid JSON: {_where(error)}") from None


def undeclared_json(value: bytes | bytearray | str, what: str) -> object:
    """Parsed JSON where no content type tells whether it is some; NOT_JSON for what is none.

    Raises InvalidJson for what begins as hardly anything but JSON does and is not valid.
    """
    if not isinstance(value, str) and value.startswith(codecs.BOM_UTF8):
        value = value[len(codecs.BOM_UTF8) :]
    if not _matches(JSON_BEGINS, value):
        return NOT_JSON
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if not _matches(JSON_MEANT, value):
            return NOT_JSON
        reason = f"{what} begins as JSON does and is not valid JSON: {_where(error)}"
        raise InvalidJson(f"{reason}; if it is meant as it stands, send it as text/plain") from None


def refuse_other_charset(charset: str | None, what: str) -> None:
    """Raises UnsupportedMediaType where TorchServe has read as UTF-8 what was declared as something else."""
    if charset is not None and _codec(charset) not in ("utf-8", "ascii", "utf-8-sig"):
        raise UnsupportedMediaType(f"{what} came as charset {charset[:40]!r}; send it in UTF-8")


def content_type(value: str) -> tuple[str, str | None]:
    """A Content-Type header -> the media type in lower case ("" for none), and the charset if one is declared."""
    media_type, *parameters = value.split(";")
    charsets = []
    for parameter in parameters:
        name, _, held = parameter.partition("=")
        if name.strip().lower() == "charset":
            charsets.append(held.strip().strip("\"'").strip().lower())
    return media_type.strip().lower(), ", ".join(sorted(set(charsets))) if charsets else None


def _codec(charset: str) -> str:
    """Python's name of a charset. Raises UnsupportedMediaType where Python has none."""
    name = re.sub(r"[\s\-.]+", "_", charset.strip().lower())
    if name not in CODECS or name in NO_CHARSETS:
        raise _unknown(charset)
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise _unknown(charset) from None


def _unknown(charset: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"unknown charset {charset[:40]!r}; send UTF-8")


def _agree(name: str, marked: str) -> bool:
    return marked == name or marked.startswith(f"{name}-") or (name, marked) == ("utf-8-sig", "utf-8")


def _named(codec: str) -> str:
    return codec.upper() if codec.startswith("utf") else codec


def _matches(pattern: str, value: bytes | bytearray | str) -> bool:
    found = re.match(pattern, value) if isinstance(value, str) else re.match(pattern.encode(), value)
    return found is not None


def _where(error: orjson.JSONDecodeError) -> str:
    return f"{error.msg} at line {error.lineno} column {error.colno}"
