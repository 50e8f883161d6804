"""TIFF files by hand: Pillow writes few of the layouts that scanners, cameras and laboratories do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]  # (height, width, samples), whole numbers
SHORT, LONG, LONG8 = 3, 4, 16
CODES = {SHORT: "H", LONG: "I", LONG8: "Q"}
PACKERS: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: data,
    8: zlib.compress,
    32946: zlib.compress,
    32773: lambda data: b"".join(
        bytes([len(data[at : at + 128]) - 1]) + data[at : at + 128] for at in range(0, len(data), 128)
    ),
}
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def tiff(
    values: Values,
    *,
    bits: int = 8,
    photometric: int = 1,
    extra: Sequence[int] = (),
    order: str = "<",
    planar: int = 1,
    compression: int = 1,
    predictor: int = 1,
    fill: int = 1,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    big: bool = False,
    colours: Sequence[int] = (),
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF of one picture. tile: (height, width). rows: of a strip. tags: in place of the layout's own ones."""
    height, width, samples = values.shape
    parts = [_pack(part, bits, order, compression, predictor, fill) for part in _cut(values, planar, rows, tile)]
    head = 16 if big else 8
    starts = [head + sum(map(len, parts[:place])) for place in range(len(parts))]
    found: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [bits] * samples,
        259: [compression],
        262: [photometric],
        266: [fill],
        277: [samples],
        284: [planar],
        317: [predictor],
    }
    places, sizes = (324, 325) if tile else (273, 279)
    found |= {places: starts, sizes: list(map(len, parts))}
    found |= {323: [tile[0]], 322: [tile[1]]} if tile else {278: [rows or height]}
    found |= {338: extra} if extra else {}
    found |= {320: colours} if colours else {}
    return assemble(b"".join(parts), {**found, **(tags or {})}, order, big)


def assemble(body: bytes, tags: Mapping[int, Sequence[int]], order: str = "<", big: bool = False) -> bytes:
    """Header, body and directory. Tags without values are left out."""
    width, word = (8, "Q") if big else (4, "I")
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16 + len(body)) if big else (42, 8 + len(body)))
    )
    tags = {tag: numbers for tag, numbers in sorted(tags.items()) if len(numbers)}
    at = len(head) + len(body) + (16 if big else 6) + len(tags) * (20 if big else 12)
    entries, outside = b"", b""
    for tag, numbers in tags.items():
        kind = SHORT if max(numbers) < 65536 else LONG
        content = struct.pack(f"{order}{len(numbers)}{CODES[kind]}", *numbers)
        entries += struct.pack(f"{order}HH{word}", tag, kind, len(numbers))
        if len(content) <= width:
            entries += content.ljust(width, b"\0")
        else:
            entries += struct.pack(order + word, at + len(outside))
            outside += content
    return head + body + struct.pack(order + ("Q" if big else "H"), len(tags)) + entries + bytes(width) + outside


def _cut(values: Values, planar: int, rows: int | None, tile: tuple[int, int] | None) -> list[Values]:
    """Strips or tiles, plane by plane if the planes lie apart."""
    height, width, samples = values.shape
    planes = [values] if planar == 1 else [values[..., k : k + 1] for k in range(samples)]
    if not tile:
        rows = rows or height
        return [plane[top : top + rows] for plane in planes for top in range(0, height, rows)]
    padded = [np.pad(plane, ((0, -height % tile[0]), (0, -width % tile[1]), (0, 0))) for plane in planes]
    return [
        plane[top : top + tile[0], left : left + tile[1]]
        for plane in padded
        for top in range(0, height, tile[0])
        for left in range(0, width, tile[1])
    ]


def _pack(part: Values, bits: int, order: str, compression: int, predictor: int, fill: int) -> bytes:
    if predictor == 2:
        part = np.concatenate([part[:, :1], np.diff(part.astype(np.int64), axis=1) % 2**bits], axis=1)
    rows = part.reshape(len(part), -1)
    if bits < 8 or bits % 8:
        digits = (rows[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
        data = np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
    else:
        data = rows.astype(f"{order}u{bits // 8}").tobytes()
    data = PACKERS[compression](data)
    return data.translate(MIRRORED) if fill == 2 else data
