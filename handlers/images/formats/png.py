"""A PNG's chunks. Source: PNG specification, third edition, sections 5 and 11."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_RAW_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"  # ImageMagick wrote the former before eXIf existed
MAX_CHUNKS = 65_536  # each costs time
_MAX_TEXT = 1 << 20  # bytes that are inflated of one text


class Png(NamedTuple):
    """What is known before decoding.

    data: the file without the chunks that change no pixel of the first picture.
    size: (width, height) in pixels; None if the header is missing.
    unknown: kinds of critical chunks that no PNG may have.
    exif, xmp: their data; empty if there is none.
    """

    data: bytes
    size: tuple[int, int] | None
    unknown: set[bytes]
    exif: bytes
    xmp: bytes


def read(data: bytes) -> Png:
    """The chunks up to IEND, or up to the first impossible one. Raises ValueError if there are too many."""
    kept, unknown, exif, texts = [SIGNATURE], set(), b"", dict[bytes, tuple[bytes, bytes]]()
    for kind, start, end in _chunks(data):
        if kind in _NEEDED:
            kept.append(data[start:end])
        elif not kind[0] & 32:  # a capital letter: a critical chunk, which a reader must not skip
            unknown.add(kind)
        elif kind == b"eXIf":
            exif = data[start + 8 : end - 4]
        elif kind in _TEXTS:
            keyword, _, value = data[start + 8 : end - 4].partition(b"\0")
            texts[keyword] = kind, value
    exif = exif or _unhex(_text(*texts.get(_RAW_EXIF, (b"tEXt", b""))))
    xmp = _text(*texts.get(_XMP, (b"tEXt", b"")))
    size = struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" and len(data) >= 29 else None
    return Png(b"".join(kept), size, unknown, exif, xmp)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind, first byte and last byte + 1; the last chunk may be cut off."""
    offset, kind = len(SIGNATURE), b""
    for _ in range(MAX_CHUNKS):
        if kind == b"IEND" or offset + 8 > len(data):
            return
        length, kind = int.from_bytes(data[offset : offset + 4], "big"), data[offset + 4 : offset + 8]
        if not kind.isalpha():
            return
        yield kind, offset, min(offset + 12 + length, len(data))
        offset += 12 + length
    raise ValueError(f"a PNG of more than {MAX_CHUNKS} chunks")


def _text(kind: bytes, value: bytes) -> bytes:
    """The text after its keyword; empty if it cannot be inflated."""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, value = value[:1] != b"\0", value[2:].split(b"\0", 2)[-1]
    elif packed:
        value = value[1:]
    try:
        return zlib.decompressobj().decompress(value, _MAX_TEXT) if packed else value
    except zlib.error:
        return b""


def _unhex(profile: bytes) -> bytes:
    """An EXIF profile as ImageMagick writes it: three lines of heading, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(profile.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""
