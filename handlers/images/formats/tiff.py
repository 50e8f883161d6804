"""TIFF files: only layouts that Pillow decodes right reach it, in a directory written here.

Pillow decodes some layouts wrongly without an error (16 bits in planes come out in wrong colours, white-is-zero
images negative), and libtiff allocates whatever the tags ask for. So the first directory is read and judged here.
Pillow gets the file's own strips or tiles behind a new directory that holds nothing else.
Source: TIFF 6.0, its supplements 1 and 2, BigTIFF's draft. tests/parity/test_tiff_parity.py checks the layouts.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from handlers.images.formats import ifd, jpeg
from handlers.images.formats.tiff_layouts import (
    COLOURS,
    FAX,
    JPEG,
    PALETTE,
    YCBCR,
    Layout,
    each_sample,
    extra_samples,
)
from handlers.protocol.errors import InvalidImage, PayloadTooLarge, UnsupportedMediaType

MAX_PARTS = 32_768  # strips or tiles; each costs time
MAX_JPEGS = 8_192


class Part(NamedTuple):
    """A strip or a tile.

    start, size: where it lies in the file, in bytes.
    width, height: in pixels.
    """

    start: int
    size: int
    width: int
    height: int


@dataclass(frozen=True)
class Tiff:
    """The first picture of a file, in a layout that is read.

    width, height: in pixels.
    photometric, extra, compression, predictor, fill: values of TIFF's tags of these names.
    bits: per sample, the same for all samples.
    tile: (width, height) of a tile in pixels; None if the picture is in strips.
    rows: of a strip.
    planes: the strips or tiles of each plane; one plane if all samples of a pixel lie together.
    """

    directory: ifd.Directory
    width: int
    height: int
    photometric: int
    bits: int
    extra: tuple[int, ...]
    compression: int
    predictor: int
    fill: int
    tile: tuple[int, int] | None
    rows: int
    planes: tuple[tuple[Part, ...], ...]

    @property
    def pixels(self) -> int:
        """Pixels that decoding touches: tiles reach over the picture's edges, and may be far larger than it is."""
        return sum(part.width * part.height for part in self.planes[0])

    @property
    def inverted(self) -> bool:
        """Whether zero is white and Pillow decodes it as black, as it does with 16 bits."""
        return self.photometric == 0 and self.bits == 16

    @property
    def xmp(self) -> bytes:
        """XMP's text, for the orientation; TIFF's own directory is its EXIF."""
        return self.directory.content(700)

    def jpegs(self) -> list[bytes]:
        """The JPEG in each strip or tile; empty if the compression is another."""
        data = self.directory.data
        if self.compression != JPEG:
            return []
        return [data[part.start : part.start + part.size] for plane in self.planes for part in plane]

    def files(self) -> list[bytes]:
        """A TIFF with this picture and nothing else; if its colours lie in planes, one grey TIFF per plane."""
        if len(self.planes) == 1:
            # Pillow 12 refuses grey with an unspecified extra sample; declared as alpha, it is dropped as well.
            extra = (2,) if self.photometric == 1 and self.extra == (0,) else self.extra
            return [self._file(self.planes[0], self.photometric, extra)]
        colours = COLOURS[self.photometric]
        return [self._file(plane, self.photometric if colours == 1 else 1, ()) for plane in self.planes[:colours]]

    def _file(self, parts: Sequence[Part], photometric: int, extra: Sequence[int]) -> bytes:
        samples = COLOURS[photometric] + len(extra)
        starts, sizes = [part.start for part in parts], [part.size for part in parts]
        tags: dict[int, Sequence[int]] = {
            256: [self.width],
            257: [self.height],
            258: [self.bits] * samples,
            259: [self.compression],
            262: [1 if self.inverted else photometric],
            266: [self.fill],
            277: [samples],
            317: [self.predictor] if self.predictor != 1 else [],
            320: self._palette() if photometric == PALETTE else [],
            338: extra,
            339: [2 if self.bits == 32 else 1] * samples,  # Pillow reads no unsigned big-endian 32 bits
        }
        if self.tile:
            tags |= {322: [self.tile[0]], 323: [self.tile[1]], 324: starts, 325: sizes}
        else:
            tags |= {273: starts, 278: [self.rows], 279: sizes}
        if self.compression == FAX[1]:
            tags[292] = self.directory.numbers(292, (0,))
        if photometric == YCBCR:
            tags[530] = self.directory.numbers(530, (2, 2))
        tables = self.directory.content(347) if self.compression == JPEG else b""
        return _assemble(self.directory, tags, tables)

    def _palette(self) -> tuple[int, ...]:
        """All red, then all green, then all blue values, in 16 bits; some writers store 8 bits."""
        colours = self.directory.numbers(320)
        if len(colours) != 3 * 2**self.bits:
            raise ValueError(f"a palette of {len(colours)} numbers for {self.bits} bits")
        return colours if max(colours) > 255 else tuple(colour * 257 for colour in colours)


def read(data: bytes) -> Tiff:
    """The first picture's layout.

    Raises UnsupportedMediaType with the layout's name if it is not read, and ValueError if the file is broken.
    """
    return _read(ifd.read(data))


def _read(directory: ifd.Directory) -> Tiff:
    width, height = directory.number(256), directory.number(257)
    compression, photometric = directory.number(259, 1), directory.number(262)
    samples, planar = directory.number(277, 1), directory.number(284, 1)
    if not width or not height or not 1 <= samples <= 65535:
        raise ValueError(f"{width} x {height} pixels of {samples} samples")
    bits = each_sample(directory, 258, 1, samples)
    formats = each_sample(directory, 339, 1, samples)
    predictor, fill = directory.number(317, 1), directory.number(266, 1)
    extra = extra_samples(directory, photometric, samples)
    layout = Layout(photometric, bits, formats, samples, extra, planar, compression, predictor, fill)
    if 3 in formats:
        raise InvalidImage(
            f"the image holds {max(bits)}-bit floats, whose range no file says; send 8 or 16 bits, or a .npy"
        )
    if not layout.is_supported():
        raise UnsupportedMediaType(
            f"the TIFF's layout is not read: {layout.description()}. Wanted: grey, palette, RGB or CMYK, 8 or 16 "
            "unsigned bits a sample, with deflate, LZW, JPEG or no compression; or send a PNG"
        )
    if unclear := directory.repeated & {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325}:
        raise ValueError(f"tag {min(unclear)} is there twice")
    tile, rows, parts = _parts(directory, width, height, samples if planar == 2 else 1)
    in_plane = len(parts) // samples if planar == 2 else len(parts)
    planes = tuple(parts[at : at + in_plane] for at in range(0, len(parts), in_plane))
    return Tiff(
        directory,
        width,
        height,
        photometric,
        bits[0],
        extra,
        compression,
        predictor,
        fill,
        tile,
        rows,
        planes,
    )


def _parts(
    directory: ifd.Directory, width: int, height: int, planes: int
) -> tuple[tuple[int, int] | None, int, tuple[Part, ...]]:
    """((width, height) of a tile or None, rows of a strip, all strips or tiles)."""
    tiled = 324 in directory.entries
    rows = height
    if tiled:
        wide, high = directory.number(322), directory.number(323)
    else:
        wide, high = width, min(directory.number(278, height), height)
        rows = high
    if not wide or not high:
        raise ValueError(f"tiles or strips of {wide} x {high} pixels")
    count = math.ceil(width / wide) * math.ceil(height / high) * planes
    if count > MAX_PARTS:
        raise PayloadTooLarge(f"the TIFF is cut into {count} strips or tiles; at most {MAX_PARTS} are read")
    starts, sizes = directory.numbers(324 if tiled else 273), _sizes(directory, tiled, count)
    if len(starts) < count or len(sizes) < count:
        raise ValueError(f"{count} strips or tiles are wanted, and {min(len(starts), len(sizes))} are there")
    last = len(directory.data)
    if max(starts[:count]) >= last:
        raise ValueError("strips or tiles lie outside the file")
    heights = [high if tiled else min(high, height - top) for top in range(0, height, high)]
    across = math.ceil(width / wide)
    parts = (
        Part(start, min(size, last - start), wide, heights[index // across % len(heights)])
        for index, (start, size) in enumerate(zip(starts[:count], sizes[:count], strict=True))
    )
    return (wide, high) if tiled else None, rows, tuple(parts)


def _sizes(directory: ifd.Directory, tiled: bool, count: int) -> tuple[int, ...]:
    """Bytes of each strip or tile; some writers leave this out for uncompressed ones."""
    tag = 325 if tiled else 279
    if tag not in directory.entries and directory.number(259, 1) == 1:
        return (len(directory.data),) * count
    return directory.numbers(tag)


def _assemble(directory: ifd.Directory, tags: dict[int, Sequence[int]], jpeg_tables: bytes) -> bytes:
    """The file's bytes where they were, with a header that points to a new directory at the end."""
    order, data = directory.order, directory.data
    data += bytes(-len(data) % 2)
    entries = [(tag, 3 if max(numbers) < 65536 else 4, numbers) for tag, numbers in sorted(tags.items()) if numbers]
    contents = [
        (tag, kind, len(numbers), struct.pack(f"{order}{len(numbers)}{'HI'[kind - 3]}", *numbers))
        for tag, kind, numbers in entries
    ]
    if jpeg_tables:
        contents = sorted([*contents, (347, 7, len(jpeg_tables), jpeg_tables)])
    at, written, outside = len(data) + 6 + 12 * len(contents), b"", b""
    for tag, kind, count, content in contents:
        written += struct.pack(order + "HHI", tag, kind, count)
        if len(content) <= 4:
            written += content.ljust(4, b"\0")
        else:
            written += struct.pack(order + "I", at + len(outside))
            outside += content + bytes(len(content) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, len(data))
    return b"".join([head, data[8:], struct.pack(order + "H", len(contents)), written, bytes(4), outside])


def scans(picture: Tiff) -> int:
    """The largest number of scans of a JPEG in a strip or tile; 1 for another compression.

    Raises InvalidImage if a JPEG is larger than the tags say, PayloadTooLarge if there are too many.
    """
    jpegs = picture.jpegs()
    if len(jpegs) > MAX_JPEGS:
        raise PayloadTooLarge(f"the TIFF holds {len(jpegs)} JPEGs; at most {MAX_JPEGS} are decoded")
    most = 1
    for data, part in zip(jpegs, picture.planes[0], strict=bool(jpegs)):
        found = jpeg.read(data)
        if len(found.frames) != 1 or found.frames[0][0] > part.width or found.frames[0][1] > part.height:
            raise InvalidImage(
                f"the TIFF is broken: its JPEGs are of other sizes than the {part.width} x {part.height} pixels that "
                "its tags say"
            )
        most = max(most, found.scans)
    return most
