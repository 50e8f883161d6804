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
# What says nothing of pixels: all application segments but JFIF's and Adobe's, which tell the colours, and comments.
_BESIDE = {*range(0xE1, 0xF0), 0xFE} - {0xEE}
# Behind a scan's header: zero bytes and restarts belong to its data, and what is below 0xC0 is skipped by decoders.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
MAX_SEGMENTS = 16_384  # encoders write some dozens; each costs some time of its own


class Jpeg(NamedTuple):
    """What is known before decoding. data: the one picture, less what says nothing of its pixels.

    frames: (width, height) of each frame header; a sound picture has one.
    """

    data: bytes
    frames: list[tuple[int, int]]
    scans: int
    exif: bytes
    xmp: bytes


def read(data: bytes) -> Jpeg:
    """The first JPEG in the data, up to its end marker. Raises ValueError if it is cut into too many segments."""
    kept, frames, scans, exif, xmp, done = [], [], 0, [], b"", 0
    for marker, start, end in _segments(data):
        content = data[start + 4 : min(end, start + 65537)]
        scans += marker == _SCAN
        if marker in _FRAMES and len(content) >= 5:
            height, width = struct.unpack_from(">HH", content, 1)
            frames.append((width, height))
        if marker in _BESIDE:
            kept.append(data[done:start])
            done = end
        if marker == 0xE1 and content.startswith(_EXIF):
            exif.append(content[len(_EXIF) :])
        elif marker == 0xE1 and content.startswith(_XMP):
            xmp = content[len(_XMP) :]
        if marker == _END:
            data = data[:end]
    kept.append(data[done:])
    return Jpeg(b"".join(kept), frames, scans, b"".join(exif), xmp)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, where it begins and where it ends, in bytes; a scan ends where its header does."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, place)
        if match is None:
            return
        start, marker = match.end() - 2, data[match.end() - 1]
        place = match.end()
        if marker not in _BARE and marker != _END:
            length = int.from_bytes(data[place : place + 2], "big")
            place += max(length, 2)
        yield marker, start, min(place, len(data))
        if marker == _END:
            return
    raise ValueError(f"a JPEG of more than {MAX_SEGMENTS} segments")
