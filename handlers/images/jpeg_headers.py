"""Reads the header of a JPEG without decoding it: what decides whether a GPU's decoder may take the file.

Source: ITU-T T.81, annex B (markers and segments); Exif 2.32, section 4.5 (JPEG files and the orientation tag).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

START, END = b"\xff\xd8", b"\xff\xd9"
BASELINE, SCAN, RESTART_INTERVAL, EXIF, ADOBE = 0xC0, 0xDA, 0xDD, 0xE1, 0xEE
TABLES = (0xC4, 0xDB)  # Huffman and quantization tables
ORIENTATION = 0x0112
# Luminance samples per chrominance sample, across and down.
SUBSAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"}


class Header(NamedTuple):
    """width, height: in pixels, as stored. channels: 1 or 3. orientation: EXIF's, 1 to 8."""

    width: int
    height: int
    channels: int
    subsampling: str
    orientation: int


def read(data: bytes) -> Header | None:
    """The header of a JPEG that every decoder reads alike; None for all other files.

    Alike means: baseline, 8 bits, grey or YCbCr with the usual subsampling, all components in one scan, no data
    missing at the end, and an orientation that leaves no doubt. What is None may still be a good picture, which
    another decoder reads.
    """
    if not data.startswith(START):
        return None
    orientation, frame, adobe, at = None, None, None, 2
    while at + 4 <= len(data):
        prefix, marker, length = struct.unpack_from(">BBH", data, at)
        end = at + 2 + length
        if prefix != 0xFF or length < 2 or end > len(data):
            return None
        if marker == SCAN:
            is_whole = data.rfind(END, end) >= 0
            return _header(frame, data[at + 4], adobe, orientation) if is_whole else None
        if marker == BASELINE and frame is None:
            frame = data[at + 4 : end]
        elif marker == EXIF and data.startswith(b"Exif\0\0", at + 4):
            found = _orientation(data[at + 10 : end]) if orientation is None else None
            if found is None:
                return None
            orientation = found
        elif marker == EXIF and data.find(b"Orientation", at, end) >= 0:  # XMP, which may contradict EXIF
            return None
        elif marker == ADOBE and length >= 14 and data.startswith(b"Adobe", at + 4):
            adobe = data[at + 15]
        elif not (marker in (*TABLES, RESTART_INTERVAL, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None
        at = end
    return None


def _header(frame: bytes | None, scanned: int, adobe: int | None, orientation: int | None) -> Header | None:
    """The header of a frame's segment; scanned: components that the first scan holds."""
    if frame is None or len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        return None
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    identities = frame[6::3]
    if bits != 8 or not width or not height or channels not in (1, 3) or scanned != channels:
        return None
    if channels == 1:
        return Header(width, height, 1, "grey", orientation or 1)
    # Without Adobe's or JFIF's word, components named R, G, B are no YCbCr.
    if adobe not in (None, 1) or (adobe is None and identities == b"RGB"):
        return None
    (across, down), *chrominance = [(factor >> 4, factor & 15) for factor in frame[7::3]]
    if any(factor != (1, 1) for factor in chrominance) or (across, down) not in SUBSAMPLINGS:
        return None
    return Header(width, height, 3, SUBSAMPLINGS[across, down], orientation or 1)


def _orientation(tiff: bytes) -> int | None:
    """EXIF's orientation, 1 if it has none; None if it cannot be told without doubt."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == ORIENTATION:
                return value if kind == 3 and values == 1 and 1 <= value <= 8 else None
    except struct.error:
        return None
    return 1
