"""Which way up a picture is, as Pillow's `ImageOps.exif_transpose` (and so transformers' `load_image`) reads it.

Pillow reads all tags and writes them back. Here only this one tag is read, so that other broken tags change nothing.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

from handlers.images.formats import ifd

UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TAG, _HEAD = 0x0112, b"Exif\0\0"
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_SHORT = 3  # the kind of value that EXIF wants
# struct's letters, by the tag's kind. Pillow takes neither text nor bytes for an orientation.
_NUMBERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 5: "II", 10: "ii"}


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF's number from 1 to 8; XMP's if EXIF has none; 1 (upright) if both have none or an impossible one.

    Args:
        exif: with or without "Exif" and two zero bytes in front of its TIFF header.
        xmp: the XMP packet's text.
    """
    found = _of_exif(exif)
    if found is None:
        match = _XMP.search(xmp)
        found = int(match[1]) if match else UPRIGHT
    return found if found in TURNS else UPRIGHT


def certain_orientation(tiff: bytes) -> int | None:
    """EXIF's number from 1 to 8; 1 if it has none; None if readers may differ about it.

    Args:
        tiff: EXIF's data, beginning with its TIFF header.
    """
    try:
        directory = ifd.read(tiff)
        value = directory.number(_TAG, UPRIGHT)
    except ValueError:
        return None
    as_specified = _TAG not in directory.entries or directory.entries[_TAG].kind == _SHORT
    return value if as_specified and _TAG not in directory.repeated and 1 <= value <= 8 else None


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture upright; the same object if it is so already."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _of_exif(exif: bytes) -> int | None:
    """The tag's number; 0 if its value is none of 1 to 8; None if the tag is missing."""
    try:
        directory = ifd.read(exif.removeprefix(_HEAD).removeprefix(_HEAD))  # some writers put it there twice
    except ValueError:
        return None
    content = directory.content(_TAG)
    return _number(directory.entries[_TAG], directory.order, content) if content else None


def _number(entry: ifd.Entry, order: str, content: bytes) -> int:
    """The tag's number, the first if there are several; 0 if it is none of 1 to 8."""
    if entry.kind not in _NUMBERS:
        return 0
    values = struct.unpack_from(order + _NUMBERS[entry.kind], content)
    if len(values) == 2:
        values = (values[0] / values[1],) if values[1] else (0,)
    return int(values[0]) if values[0] in TURNS else 0
