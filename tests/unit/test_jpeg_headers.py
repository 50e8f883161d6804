"""A JPEG's header, read without decoding: Pillow's own view of every file that a GPU may decode."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from handlers.images import jpeg_headers
from handlers.images.jpeg_headers import Header

Encode = Callable[..., bytes]


def exif(orientation: int, order: bytes = b"MM") -> bytes:
    """A segment's content with this orientation alone, in either byte order."""
    ends = "big" if order == b"MM" else "little"

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, ends)  # type: ignore[arg-type]

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    return b"Exif\0\0" + order + number(42, 2) + number(8, 4) + number(1, 2) + entry + number(0, 4)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def with_segment(data: bytes, added: bytes) -> bytes:
    return data[:2] + added + data[2:]


@pytest.mark.parametrize(("subsampling", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_baseline_files_are_described(picture: Image.Image, file_of: Encode, subsampling: int, name: str) -> None:
    data = file_of(picture, "JPEG", subsampling=subsampling)
    assert jpeg_headers.read(data) == Header(*picture.size, 3, name, 1)
    optimised = file_of(picture, "JPEG", subsampling=subsampling, optimize=True, comment=b"a comment")
    assert jpeg_headers.read(optimised) == Header(*picture.size, 3, name, 1)
    assert jpeg_headers.read(data + b"what a camera appends") == Header(*picture.size, 3, name, 1)


def test_grey_is_one_channel(picture: Image.Image, file_of: Encode) -> None:
    assert jpeg_headers.read(file_of(picture.convert("L"), "JPEG")) == Header(*picture.size, 1, "grey", 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", [b"MM", b"II"])
def test_orientation_is_the_tags(picture: Image.Image, file_of: Encode, orientation: int, order: bytes) -> None:
    data = file_of(picture, "JPEG", exif=exif(orientation, order))
    header = jpeg_headers.read(data)
    assert header is not None
    assert header.orientation == orientation
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    turned = header.orientation >= 5
    assert upright.size == ((header.height, header.width) if turned else (header.width, header.height))


def test_what_decoders_may_read_differently_is_left_to_the_cpu(picture: Image.Image, file_of: Encode) -> None:
    plain = file_of(picture, "JPEG")
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')
    files = {
        "progressive": file_of(picture, "JPEG", progressive=True),
        "CMYK": file_of(picture.convert("CMYK"), "JPEG"),
        "RGB kept as RGB": file_of(picture, "JPEG", keep_rgb=True),
        "cut off": plain[: len(plain) // 2],
        "cut in its header": plain[:300],
        "XMP that turns it": with_segment(plain, xmp),
        "two EXIF segments": with_segment(file_of(picture, "JPEG", exif=exif(1)), segment(0xE1, exif(6))),
        "an orientation of 9": with_segment(plain, segment(0xE1, exif(9))),
        "broken EXIF": with_segment(plain, segment(0xE1, b"Exif\0\0MM\0*\0\0\xff\xff")),
        "12 bits": plain.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "arithmetic coding": plain.replace(b"\xff\xc0\x00\x11", b"\xff\xc9\x00\x11"),
        "a height that comes later": plain.replace(
            b"\xff\xc0\x00\x11\x08" + picture.height.to_bytes(2, "big"), b"\xff\xc0\x00\x11\x08\0\0"
        ),
        "Adobe's RGB in a longer segment": with_segment(plain, segment(0xEE, b"Adobe\0\x64" + bytes(4) + b"\0\1")),
        "a PNG": file_of(picture, "PNG"),
        "nothing": b"",
    }
    assert {name: jpeg_headers.read(data) for name, data in files.items()} == dict.fromkeys(files)


def _photo() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((40, 24)).convert("RGB").save(stream, "JPEG", exif=exif(6))
    return stream.getvalue()


PHOTO = _photo()


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, len(PHOTO)))
def test_a_header_that_is_read_is_pillows(changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever the bytes: no exception, and never another size than Pillow's."""
    data = bytearray(PHOTO)
    for at, value in changes:
        data[at] = value
    del data[cut:]
    header = jpeg_headers.read(bytes(data))
    if header is None:
        return
    opened: Any = Image.open(io.BytesIO(bytes(data)), formats=["JPEG"])
    assert (opened.size, opened.mode) == ((header.width, header.height), "RGB" if header.channels == 3 else "L")
