"""A JPEG's segments. Source: ITU-T T.81, annex B; Exif 2.32, section 4.7; XMP part 3, section 1.1.3."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_END, _SCAN = 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # those three are tables and a reserved one
_BARE = {0x01, *range(0xD0, 0xD9)}  # no length follows these
# Segments that change no pixel: comments, and all application segments except JFIF's and Adobe's, which say what the
# colours are.
_METADATA = {*range(0xE1, 0xF0), 0xFE} - {0xEE}
# Markers after a scan's header. 0xFF00 and restarts belong to the scan's data; decoders skip markers below 0xC0.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
MAX_SEGMENTS = 16_384  # encoders write some dozens, and each costs time


class Jpeg(NamedTuple):
    """What is known before decoding.

    data: the first picture of the file, without the segments that change no pixel.
    frames: (width, height) in pixels of each frame header; a sound picture has one.
    scans: how many times decoding goes over the picture.
    exif, xmp: their data, without the identifier in front; empty if there is none.
    """

    data: bytes
    frames: list[tuple[int, int]]
    scans: int
    exif: bytes
    xmp: bytes


def read(data: bytes) -> Jpeg:
    """The first JPEG in the data, up to its end marker. Raises ValueError if it is cut into too many segments."""
    kept, frames, scans, exif, xmp, copied = [], [], 0, [], b"", 0
    for marker, start, end in _segments(data):
        content = data[start + 4 : min(end, start + 65537)]
        scans += marker == _SCAN
        if marker in _FRAMES and len(content) >= 5:
            height, width = struct.unpack_from(">HH", content, 1)
            frames.append((width, height))
        if marker in _METADATA:
            kept.append(data[copied:start])
            copied = end
        if marker == 0xE1 and content.startswith(_EXIF):
            exif.append(content[len(_EXIF) :])
        elif marker == 0xE1 and content.startswith(_XMP):
            xmp = content[len(_XMP) :]
        if marker == _END:
            data = data[:end]
    kept.append(data[copied:])
    return Jpeg(b"".join(kept), frames, scans, b"".join(exif), xmp)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, first byte and last byte + 1. A scan's segment is its header alone."""
    offset = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, offset)
        if match is None:
            return
        start, marker = match.end() - 2, data[match.end() - 1]
        offset = match.end()
        if marker not in _BARE and marker != _END:
            length = int.from_bytes(data[offset : offset + 2], "big")
            offset += max(length, 2)
        yield marker, start, min(offset, len(data))
        if marker == _END:
            return
    raise ValueError(f"a JPEG of more than {MAX_SEGMENTS} segments")
