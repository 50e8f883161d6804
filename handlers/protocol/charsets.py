"""Bytes -> text, by its charset or byte order mark; bytes -> JSON, declared as such or not."""

from __future__ import annotations

import codecs
import encodings
import functools
import pkgutil
import re
from encodings.aliases import aliases

import orjson

from handlers.protocol import doubled_keys
from handlers.protocol.errors import InvalidInput, InvalidJson, UnsupportedMediaType

JSON = "application/json"
UNSPECIFIC = ("", "application/octet-stream")  # content types that leave open what a body is
# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
EVERY_MARK = tuple(mark for mark, _ in MARKS)
COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"x\x9c", "zlib"),
    (b"x\xda", "zlib"),
)
MAY_BE_COMPRESSED = (*(magic for magic, _ in COMPRESSED), b"BZh")  # NPZ begins as a zip does
BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
NPZ = re.compile(rb"PK\x03\x04.{26}[^/]{1,80}?\.npy", re.DOTALL)  # a zip archive whose first file is a .npy
# Codecs of Python that no client means by a charset: escapes, and parts of domain names.
NO_CHARSETS = ("idna", "mbcs", "oem", "punycode", "raw_unicode_escape", "undefined", "unicode_escape")
# Python caches every failed lookup of a codec for ever, so only known names are looked up.
CODECS = {module.name for module in pkgutil.iter_modules(encodings.__path__)} | aliases.keys() | set(aliases.values())
# How JSON can begin; and how hardly anything but JSON (or Python's notation for it) begins. "[MASK] is ..." and
# "[1] A footnote" are texts. A whole string of JSON (RFC 8259, section 7) may hold half of a surrogate pair, which
# orjson does not read.
JSON_BEGINS = r"\s*[\[{\"\d\-tfn]"
JSON_STRING = r"\s*\"(?:[^\"\\\0-\x1f]|\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4}))*\"\s*\Z"
JSON_MEANT = r"\s*(?:\{\s*[\"'}]|\[\s*[\"'{])"
NOT_JSON = object()


def text(data: bytes | bytearray, charset: str | None = None, what: str = "the text") -> str:
    """Return the text by its charset, else by its byte order mark, else as UTF-8; without the byte order mark.

    Args:
        charset: as declared, None if it was not.
        what: names the text in messages.

    Raises UnsupportedMediaType for an unknown charset, and InvalidInput for bytes that are not of the charset.
    """
    if charset is None:
        refuse_compressed(data, what)
    mark, marked = _mark_of(data)
    name = marked or "utf-8" if charset is None else _codec(charset)
    if marked and not _agree(name, marked):
        raise InvalidInput(f"{what} came as charset {charset!r} and begins with the byte order mark of {marked}")
    if name in ("utf-16", "utf-32") and not marked:
        raise InvalidInput(f"{what} came as {name} without a byte order mark; declare {name}le or {name}be")
    try:
        found = bytes(data[len(mark) :]).decode(marked or name)
    except LookupError:  # a codec of Python that decodes to bytes
        raise _unknown(charset or "") from None
    except UnicodeError as error:
        refuse_compressed(data, what)
        index = getattr(error, "start", 0) + len(mark)
        raise InvalidInput(f"{what} is not {_named(marked or name)}: byte {index} of {len(data)}") from None
    if "\0" in found:
        raise InvalidInput(
            f"{what} holds NUL characters, which are no text; UTF-16 has to be declared: charset=utf-16le"
        )
    return found


def refuse_compressed(data: bytes | bytearray, what: str) -> None:
    """Raises UnsupportedMediaType for bytes that begin as a compressed file does, or as NumPy's .npz."""
    if not data.startswith(MAY_BE_COMPRESSED):
        return
    if NPZ.match(data):
        raise UnsupportedMediaType(f"{what} is a .npz file, which holds several arrays; send one as a .npy file")
    name = next((name for magic, name in COMPRESSED if data.startswith(magic)), None)
    if name is None and BZIP2.match(data):
        name = "bzip2"
    if name:
        raise UnsupportedMediaType(f"{what} is compressed ({name}); send it uncompressed")


def json(value: bytes | bytearray, charset: str | None, what: str) -> object:
    """Return parsed JSON, by its charset or byte order mark, else as UTF-8 (RFC 8259). Raises RequestError.

    An object that has a key twice is refused.

    Args:
        charset: as declared, None if it was not.
        what: names the JSON in messages.
    """
    refuse_compressed(value, what)
    other = charset is not None or value.startswith(EVERY_MARK)
    try:
        source = text(value, charset, what) if other else value
        parsed = orjson.loads(source)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"{what} is not valid JSON: {_where(error)}") from None
    doubled_keys.refuse(source, parsed, what)
    return parsed


def undeclared_json(value: bytes | bytearray | str, what: str) -> object:
    """Return parsed JSON from a body whose content type does not say what it is; NOT_JSON if it is something else.

    Raises InvalidJson for a body that begins as hardly anything but JSON does, and is not valid or has a key twice.
    """
    if not isinstance(value, str) and value.startswith(codecs.BOM_UTF8):
        value = value[len(codecs.BOM_UTF8) :]
    if not _matches(JSON_BEGINS, value):
        return NOT_JSON
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if not _matches(JSON_MEANT, value) and not _is_json_string(value):
            return NOT_JSON
        reason = f"{what} begins as JSON does and is not valid JSON: {_where(error)}"
        raise InvalidJson(f"{reason}; if it is meant as it stands, send it as text/plain") from None
    doubled_keys.refuse(value, parsed, what)
    return parsed


def refuse_other_charset(charset: str | None, what: str) -> None:
    """Raises UnsupportedMediaType if TorchServe has read as UTF-8 what was declared as something else."""
    if charset is not None and _codec(charset) not in ("utf-8", "ascii", "utf-8-sig"):
        raise UnsupportedMediaType(f"{what} came as charset {charset[:40]!r}; send it in UTF-8")


@functools.lru_cache(256)  # most requests have the same one
def content_type(value: str) -> tuple[str, str | None]:
    """Return a Content-Type header's media type in lower case ("" for none), and the charset if one is declared.

    Different charsets in one header are joined by ", ", and refused by whoever uses them.
    """
    media_type, *parameters = value.split(";")
    charsets = []
    for parameter in parameters:
        name, _, held = parameter.partition("=")
        if name.strip().lower() == "charset":
            charsets.append(held.strip().strip("\"'").strip().lower())
    return media_type.strip().lower(), ", ".join(sorted(set(charsets))) if charsets else None


@functools.lru_cache(256)
def _codec(charset: str) -> str:
    """Return Python's name of a charset. Raises UnsupportedMediaType for one that Python does not know."""
    several = charset.split(", ")
    if len(several) > 1:  # see content_type
        if len({_codec(one) for one in several}) == 1:
            return _codec(several[0])
        named = " and ".join(repr(one[:40]) for one in several[:5])
        raise UnsupportedMediaType(f"the content type declares different charsets, {named}; declare one")
    name = re.sub(r"[\s\-.]+", "_", charset.strip().lower())
    if name not in CODECS or name in NO_CHARSETS:
        raise _unknown(charset)
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise _unknown(charset) from None


def _mark_of(data: bytes | bytearray) -> tuple[bytes, str | None]:
    """The byte order mark that a text begins with, and its charset; (b"", None) if it has none."""
    if not data.startswith(EVERY_MARK):
        return b"", None
    return next((mark, name) for mark, name in MARKS if data.startswith(mark))


def _unknown(charset: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"unknown charset {charset[:40]!r}; send UTF-8")


def _agree(name: str, marked: str) -> bool:
    return marked == name or marked.startswith(f"{name}-") or (name, marked) == ("utf-8-sig", "utf-8")


def _named(codec: str) -> str:
    return codec.upper() if codec.startswith("utf") else codec


def _is_json_string(value: bytes | bytearray | str) -> bool:
    """Whether this is a string by JSON's grammar, which wants UTF-8."""
    try:
        text = value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError:
        return False
    return _matches(JSON_STRING, text)


def _matches(pattern: str, value: bytes | bytearray | str) -> bool:
    found = re.match(pattern, value) if isinstance(value, str) else re.match(pattern.encode(), value)
    return found is not None


def _where(error: orjson.JSONDecodeError) -> str:
    return f"{error.msg} at line {error.lineno} column {error.colno}"
