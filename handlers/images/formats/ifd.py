"""The directory of tags that TIFF files and EXIF data share. Source: TIFF 6.0, section 2, and BigTIFF's draft."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

# Bytes of one value, by kind.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # kinds of whole numbers without a sign, for struct
MAX_ENTRIES, MAX_NUMBERS = 65_535, 131_072  # read at most: entries of a directory, numbers of a tag
# Some writers put the two bytes of the version the wrong way round; Pillow takes those files as well.
PREFIXES = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")


class Entry(NamedTuple):
    """One tag's values.

    kind: TIFF's number of the values' type.
    length: how many values.
    start, size: where the values lie in the data, in bytes.
    """

    kind: int
    length: int
    start: int
    size: int


@dataclass(frozen=True)
class Directory:
    """The first directory of a file.

    data: the whole file.
    order: byte order, "<" or ">", for struct.
    entries: by tag.
    repeated: tags that the directory holds several times.
    """

    data: bytes
    order: str
    entries: dict[int, Entry]
    repeated: frozenset[int]

    def content(self, tag: int) -> bytes:
        """The tag's values as they lie in the file; empty if the tag is missing or its values are cut off."""
        entry = self.entries.get(tag)
        if entry is None:
            return b""
        content = self.data[entry.start : entry.start + entry.size]
        return content if len(content) == entry.size else b""

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The tag's values. Raises ValueError if they are not whole numbers, or lie outside the file."""
        entry = self.entries.get(tag)
        if entry is None:
            return default
        content, kind = self.content(tag), WHOLE.get(entry.kind)
        if kind is None or not content or entry.length > MAX_NUMBERS:
            raise ValueError(f"tag {tag} is broken")
        return struct.unpack(f"{self.order}{entry.length}{kind}", content)

    def number(self, tag: int, default: int | None = None) -> int:
        """The tag's only value. Raises ValueError if it has several or none, and no default is given."""
        numbers = self.numbers(tag, () if default is None else (default,))
        if len(numbers) != 1:
            raise ValueError(f"tag {tag} has {len(numbers)} values, wanted 1")
        return numbers[0]


def read(data: bytes) -> Directory:
    """The first directory; entries that lie beyond the data's end are left out.

    Raises ValueError if there is none.
    """
    if data[:4] not in PREFIXES:
        raise ValueError("no TIFF header")
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    start, head = (8, "Q") if big else (4, "I")
    count, entry = ("Q", "HHQ") if big else ("H", "HHI")
    try:
        (offset,) = struct.unpack_from(order + head, data, start)
        (entries,) = struct.unpack_from(order + count, data, offset)
    except (struct.error, OverflowError):
        raise ValueError("its directory lies outside the file") from None
    offset += struct.calcsize("=" + count)
    width = struct.calcsize("=" + entry + head)
    return _read(
        data,
        order,
        entry,
        head,
        range(offset, min(offset + min(entries, MAX_ENTRIES) * width, len(data) - width + 1), width),
    )


def _read(data: bytes, order: str, entry: str, head: str, offsets: range) -> Directory:
    found: dict[int, Entry] = {}
    repeated = set()
    for offset in offsets:
        tag, kind, count = struct.unpack_from(order + entry, data, offset)
        size, start = SIZES.get(kind, 0) * count, offset + struct.calcsize("=" + entry)
        if size > struct.calcsize("=" + head):
            (start,) = struct.unpack_from(order + head, data, start)
        if tag in found:
            repeated.add(tag)
        if tag not in found or 0 < size <= len(data) - start:  # of several, the last that can be read, as in Pillow
            found[tag] = Entry(kind, count, start, size)
    return Directory(data, order, found, frozenset(repeated))
