"""A WebP's chunks. Source: RFC 9649, section 2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_NEEDED = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_METADATA = 0x2C  # VP8X's flags for a colour profile, EXIF and XMP


class Webp(NamedTuple):
    """What is known before decoding.

    data: the file without metadata, and without all frames after the first.
    canvas: (width, height) in pixels that the decoder allocates; None if the first chunk does not say it.
    exif, xmp: their data; empty if there is none.
    """

    data: bytes
    canvas: tuple[int, int] | None
    exif: bytes
    xmp: bytes


def read(data: bytes) -> Webp:
    """The chunks up to the end of the data."""
    kept, found, canvas = [], dict[bytes, bytes](), None
    for kind, start, end in _chunks(data):
        chunk = data[start:end]
        if kind == b"VP8X" and len(chunk) >= 18:
            canvas = 1 + int.from_bytes(chunk[12:15], "little"), 1 + int.from_bytes(chunk[15:18], "little")
            chunk = chunk[:8] + bytes([chunk[8] & ~_METADATA]) + chunk[9:]
        if kind in _NEEDED and not (kind == b"ANMF" and kind in found):
            kept.append(chunk)
        found.setdefault(kind, chunk[8:])
    body = b"WEBP" + b"".join(kept)
    exif, xmp = found.get(b"EXIF", b""), found.get(b"XMP ", b"")
    return Webp(b"RIFF" + len(body).to_bytes(4, "little") + body, canvas, exif, xmp)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind, first byte, and last byte + 1 with its padding."""
    offset = 12
    while offset + 8 <= len(data):
        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        end = offset + 8 + length + (length & 1)
        yield data[offset : offset + 4], offset, min(end, len(data))
        offset = end
