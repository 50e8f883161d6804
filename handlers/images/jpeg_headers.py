"""Reads a JPEG's header without decoding: it decides whether the GPU's decoder may take the file.

formats/jpeg.py goes over the whole file and reads whatever a decoder can make sense of. This reader stops at the
first scan, and accepts only files that all decoders read alike.
Source: ITU-T T.81, annex B (markers and segments); Exif 2.32, section 4.7 (EXIF in JPEG files).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from handlers.images.formats.orientation import certain_orientation

START, END = b"\xff\xd8", b"\xff\xd9"
BASELINE, SCAN, RESTART_INTERVAL, EXIF, ADOBE, COMMENT = 0xC0, 0xDA, 0xDD, 0xE1, 0xEE, 0xFE
TABLES = (0xC4, 0xDB)  # Huffman and quantization tables
# Luminance samples per chrominance sample, across and down.
SUBSAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"}


class Header(NamedTuple):
    """A JPEG that every decoder reads alike.

    width, height: in pixels, as stored, before the image is turned upright.
    channels: 1 (grey) or 3 (YCbCr).
    subsampling: "grey" or one of SUBSAMPLINGS.
    orientation: EXIF's, 1 to 8.
    """

    width: int
    height: int
    channels: int
    subsampling: str
    orientation: int


def read(data: bytes) -> Header | None:
    """The header of a JPEG that every decoder reads alike; None for all other files.

    Such a file is baseline, has 8 bits per sample, is grey or YCbCr with a usual subsampling, has all components in
    one scan and an end marker, and leaves no doubt about its orientation. A file with None may still be a good
    picture: formats/ reads it.
    """
    if not data.startswith(START):
        return None
    orientation, frame, adobe, offset = None, None, None, 2
    while offset + 4 <= len(data):
        prefix, marker, length = struct.unpack_from(">BBH", data, offset)
        end = offset + 2 + length
        if prefix != 0xFF or length < 2 or end > len(data):
            return None
        if marker == SCAN:
            is_whole = data.rfind(END, end) >= 0
            return _header(frame, data[offset + 4], adobe, orientation) if is_whole else None
        if marker == BASELINE and frame is None:
            frame = data[offset + 4 : end]
        elif marker == EXIF and data.startswith(b"Exif\0\0", offset + 4):
            found = certain_orientation(data[offset + 10 : end]) if orientation is None else None
            if found is None:
                return None
            orientation = found
        elif marker == EXIF and data.find(b"Orientation", offset, end) >= 0:  # XMP, which may contradict EXIF
            return None
        elif marker == ADOBE and length >= 14 and data.startswith(b"Adobe", offset + 4):
            adobe = data[offset + 15]
        elif not (marker in (*TABLES, RESTART_INTERVAL, COMMENT) or 0xE0 <= marker <= 0xEF):
            return None
        offset = end
    return None


def _header(frame: bytes | None, scanned: int, adobe: int | None, orientation: int | None) -> Header | None:
    """The header in a frame's segment.

    Args:
        frame: content of the baseline frame segment.
        scanned: components that the first scan holds.
        adobe: Adobe's colour transform; None without such a segment.
        orientation: EXIF's; None without EXIF.
    """
    if frame is None or len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        return None
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    identities = frame[6::3]
    if bits != 8 or not width or not height or channels not in (1, 3) or scanned != channels:
        return None
    if channels == 1:
        return Header(width, height, 1, "grey", orientation or 1)
    # If no Adobe segment says which colours they are, components named R, G, B are not YCbCr.
    if adobe not in (None, 1) or (adobe is None and identities == b"RGB"):
        return None
    (across, down), *chrominance = [(factor >> 4, factor & 15) for factor in frame[7::3]]
    if any(factor != (1, 1) for factor in chrominance) or (across, down) not in SUBSAMPLINGS:
        return None
    return Header(width, height, 3, SUBSAMPLINGS[across, down], orientation or 1)
