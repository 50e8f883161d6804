"""Pictures are read by what decides their pixels: broken or hostile data beside those changes nothing."""

from __future__ import annotations

import io
import re
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from handlers.images import formats, payloads
from handlers.images.formats import jpeg, png
from handlers.images.formats.orientation import orientation
from handlers.protocol.errors import InvalidImage, PayloadTooLarge, RequestError, UnsupportedMediaType
from tests.unit.tiffs import assemble, tiff

FileOf = Callable[..., bytes]
LIMIT = 50_000_000
ORIENTATION = 0x0112
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def decode(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(formats.decode(data, LIMIT))


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def riff(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", count: int | None = None, start: int = 8) -> bytes:
    """EXIF's directory by hand: (tag, kind, count, four bytes of value or offset)."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(order + "H", len(entries) if count is None else count) + body + bytes(4)


TURNED = (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))
FAR = struct.pack("<I", 2**31)
BROKEN_EXIF = {
    "sound": exif(TURNED),
    "big endian": exif((ORIENTATION, 3, 1, struct.pack(">HH", 6, 0)), order=">"),
    "short as text": exif((0x0103, 2, 1, b"\x06\0\0\0"), TURNED),
    "offset outside": exif((0x010E, 2, 900, FAR), TURNED),
    "huge count": exif((0x010E, 2, 2**31, FAR), TURNED),
    "kind unknown": exif((0x010E, 99, 1, bytes(4)), TURNED),
    "kind zero": exif((0x010E, 0, 0, bytes(4)), TURNED),
    "rational over zero": exif((0x011A, 5, 1, struct.pack("<I", 0)), TURNED),
    "offset to itself": exif((0x8769, 4, 1, struct.pack("<I", 8)), TURNED),
    "GPS in a loop": exif((0x8825, 4, 1, struct.pack("<I", 8)), TURNED),
    "directory where a number belongs": exif((0x8769, 2, 4, b"abc\0"), TURNED),
    "more entries than there are": exif(TURNED, count=500),
    "cut behind the tag": exif(TURNED)[:-4],
    "next directory outside": exif(TURNED)[:-4] + FAR,
    "head twice": b"Exif\0\0" + exif(TURNED),
    "two of them": exif((ORIENTATION, 3, 2, struct.pack("<HH", 6, 1))),
    "negative rational": exif((0x9204, 10, 1, struct.pack("<I", 8)), TURNED),
}
NO_EXIF = {
    "empty": b"",
    "noise": b"\x9f" * 50,
    "head alone": b"II*\0",
    "directory outside": exif(TURNED, start=5000),
    "cut in its tag": exif(TURNED)[:14],
    "nine": exif((ORIENTATION, 3, 1, struct.pack("<HH", 9, 0))),
    "text": exif((ORIENTATION, 2, 2, b"6\0\0\0")),
}


def dressed(kind: str, data: bytes, exif: bytes = b"", xmp: bytes = b"") -> bytes:
    """The file with this metadata, in front of its pixels."""
    if kind == "JPEG":
        found = segment(0xE1, b"Exif\0\0" + exif) if exif else b""
        found += segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp) if xmp else b""
        return data[:2] + found + data[2:]
    if kind == "PNG":
        found = chunk(b"eXIf", exif) if exif else b""
        found += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) if xmp else b""
        return data[:33] + found + data[33:]
    flags = 0x08 * bool(exif) | 0x04 * bool(xmp)
    width, height = Image.open(io.BytesIO(data)).size
    extended = riff(
        b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    body = (
        b"WEBP" + extended + data[12:] + (riff(b"EXIF", exif) if exif else b"") + (riff(b"XMP ", xmp) if xmp else b"")
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def plain(picture: Image.Image, file_of: FileOf, kind: str) -> bytes:
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
    return file_of(picture, kind, **options.get(kind, {}))


class TestOrientation:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("name", BROKEN_EXIF)
    def test_broken_neighbours_do_not_matter(
        self, picture: Image.Image, file_of: FileOf, kind: str, name: str
    ) -> None:
        bare = plain(picture, file_of, kind)
        assert np.array_equal(decode(dressed(kind, bare, BROKEN_EXIF[name])), np.rot90(decode(bare), -1))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("name", NO_EXIF)
    def test_no_orientation_is_upright(self, picture: Image.Image, file_of: FileOf, kind: str, name: str) -> None:
        bare = plain(picture, file_of, kind)
        assert np.array_equal(decode(dressed(kind, bare, NO_EXIF[name])), decode(bare))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("found", [b"", exif((0x010F, 2, 4, b"abc\0")), b"\x9f" * 50])
    def test_xmp_where_exif_has_none(self, picture: Image.Image, file_of: FileOf, kind: str, found: bytes) -> None:
        bare = plain(picture, file_of, kind)
        assert np.array_equal(decode(dressed(kind, bare, found, XMP)), np.rot90(decode(bare), -1))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_exif_comes_before_xmp(self, picture: Image.Image, file_of: FileOf, kind: str) -> None:
        bare = plain(picture, file_of, kind)
        upright = exif((ORIENTATION, 3, 1, struct.pack("<HH", 1, 0)))
        assert np.array_equal(decode(dressed(kind, bare, upright, XMP)), decode(bare))

    @pytest.mark.parametrize("kind", [b"zTXt", b"tEXt", b"iTXt"])
    def test_imagemagicks_raw_profile(self, picture: Image.Image, file_of: FileOf, kind: bytes) -> None:
        data, profile = plain(picture, file_of, "PNG"), exif(TURNED)
        text = f"\nexif\n{len(profile):8}\n{profile.hex()}\n".encode()
        middle = {b"zTXt": b"\0" + zlib.compress(text), b"tEXt": text, b"iTXt": b"\1\0\0\0" + zlib.compress(text)}
        turned = data[:33] + chunk(kind, b"Raw profile type exif\0" + middle[kind]) + data[33:]
        assert np.array_equal(decode(turned), np.rot90(decode(data), -1))

    def test_a_tiffs_own_tag_beside_broken_ones(self) -> None:
        values = np.arange(15 * 3).reshape(3, 5, 3)
        data = tiff(values, photometric=2, tags={ORIENTATION: [6]})
        assert np.array_equal(decode(data), np.rot90(values, -1))
        broken = data.replace(struct.pack("<HHII", 284, 3, 1, 1), struct.pack("<HHII", 34665, 2, 2**31, 2**31))
        assert broken != data
        assert np.array_equal(decode(broken), np.rot90(values, -1))

    @settings(max_examples=400)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([ORIENTATION, 0x010E, 0x8769, 0x0103]),
                st.integers(0, 19),
                st.sampled_from([0, 1, 1, 1, 2, 2**31]),
                st.one_of(st.binary(min_size=4, max_size=4), st.sampled_from([b"\x06\0\0\0", b"\x08\0\0\0"])),
            ),
            max_size=4,
            unique_by=lambda entry: entry[0],
        ),
        st.binary(max_size=16),
        st.sampled_from("<>"),
        st.sampled_from([b"", XMP]),
    )
    def test_as_pillow_reads_it_where_pillow_reads_it(
        self, entries: list[tuple[int, int, int, bytes]], tail: bytes, order: str, xmp: bytes
    ) -> None:
        data = exif(*entries, order=order) + tail
        image = Image.new("L", (2, 3))
        image.info |= {"exif": data, **({"xmp": xmp} if xmp else {})}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Pillow warns of it passes over, sometimes with all that follows
            try:
                found = image.getexif().get(ORIENTATION, 1)
            except Exception:
                return
        wanted = found if found in range(1, 9) else 1
        assert orientation(data, xmp) == wanted


class TestBesideThePixels:
    NOISE = b"\xff\xda\0\x01" * 40

    @pytest.mark.parametrize("marker", [*range(0xE1, 0xEE), 0xEF, 0xFE])
    @pytest.mark.parametrize("content", [b"", b"MPF\0", b"MPF\0II*\0\x08\0\0\0\xff\xff", b"ICC_PROFILE\0", NOISE])
    def test_a_jpegs_segments(self, picture: Image.Image, file_of: FileOf, marker: int, content: bytes) -> None:
        data = plain(picture, file_of, "JPEG")
        assert np.array_equal(decode(data[:2] + segment(marker, content) + data[2:]), decode(data))

    @pytest.mark.parametrize(
        "prefix", [b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\xff\xff", b"FPXR\0", b"ICC_PROFILE\0\x09\x02"]
    )
    def test_a_jpegs_known_segments(self, picture: Image.Image, file_of: FileOf, prefix: bytes) -> None:
        data = plain(picture, file_of, "JPEG")
        for marker in (0xE2, 0xED):
            assert np.array_equal(decode(data[:2] + segment(marker, prefix) * 3 + data[2:]), decode(data))

    def test_of_several_pictures_the_first_even_if_their_table_is_broken(
        self, picture: Image.Image, file_of: FileOf
    ) -> None:
        first = plain(picture, file_of, "JPEG")
        for whole in (file_of(picture, "MPO", save_all=True, append_images=[ImageOps.invert(picture)], quality=95),):
            found = re.search(b"MPF\0", whole)
            assert found
            broken = whole[: found.end() + 8] + b"\xff\xff" + whole[found.end() + 10 :]
            assert np.array_equal(decode(whole), decode(first))
            assert np.array_equal(decode(broken), decode(first))

    @pytest.mark.parametrize("tail", [b"\0" * 3, b"\xff\xda" * 500, b"PK\x03\x04", b"\xff\xd8\xff"])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
    def test_what_trails_behind(self, picture: Image.Image, file_of: FileOf, kind: str, tail: bytes) -> None:
        data = plain(picture, file_of, kind)
        assert np.array_equal(decode(data + tail), decode(data))

    BOMB = zlib.compress(bytes(70_000_000), 9)

    @pytest.mark.parametrize(
        "found",
        [
            chunk(b"iCCP", b"x\0\0" + BOMB),
            chunk(b"iCCP", b""),
            chunk(b"iCCP", b"x\0\x07abc"),
            chunk(b"zTXt", b"k\0\0" + BOMB) * 3,
            chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB) * 3,
            chunk(b"zTXt", b"k\0\x09abc"),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
            chunk(b"tEXt", b"k\0" + b"x" * 5_000_000) * 14,
            chunk(b"tEXt", b""),
            chunk(b"gAMA", b""),
            chunk(b"cHRM", b"\0"),
            chunk(b"pHYs", b""),
            chunk(b"sRGB", b""),
            chunk(b"acTL", b"\0"),
            chunk(b"fcTL", bytes(26)),
            chunk(b"tIME", b"")[:-1] + b"\x55",  # a wrong checksum
            chunk(b"eXIf", b"\xff" * 30),
        ],
        ids=range(17),
    )
    def test_a_pngs_chunks(self, picture: Image.Image, file_of: FileOf, found: bytes) -> None:
        data = plain(picture, file_of, "PNG")
        started = time.perf_counter()
        for place in (33, len(data) - 12):
            assert np.array_equal(decode(data[:place] + found + data[place:]), decode(data))
        assert time.perf_counter() - started < 3

    def test_a_chunk_that_must_be_known_is_not_passed_over(self, picture: Image.Image, file_of: FileOf) -> None:
        data = plain(picture, file_of, "PNG")
        with pytest.raises(InvalidImage, match="no PNG may have"):
            decode(data[:33] + chunk(b"CgBI", bytes(4)) + data[33:])

    @pytest.mark.parametrize(
        "found", [riff(b"ICCP", b"\xff" * 9), riff(b"EXIF", b"x"), riff(b"XMP ", b""), riff(b"junk", b"12")]
    )
    def test_a_webps_chunks(self, picture: Image.Image, file_of: FileOf, found: bytes) -> None:
        bare = plain(picture, file_of, "WEBP")
        data = dressed("WEBP", bare, exif(), XMP.replace(b"6", b"1"))
        for changed in (data[:30] + found + data[30:], data + found, data + found[:-1]):
            assert np.array_equal(decode(changed), decode(bare))

    @pytest.mark.parametrize("found", [b"!\xfe\xff", b"!\xff\x0bXMP DataXMP\x01x", b"!\x01\x02ab\0"])
    def test_a_gifs_extensions(self, picture: Image.Image, file_of: FileOf, found: bytes) -> None:
        data = plain(picture.quantize(64), file_of, "GIF")
        start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
        block = found + bytes(255) + b"\0" if found[1] == 0xFE else found + b"\0"
        assert np.array_equal(decode(data[:start] + block + data[start:]), decode(data))


class TestScans:
    def test_marks_in_segments_and_behind_the_picture_are_no_scans(
        self, picture: Image.Image, file_of: FileOf
    ) -> None:
        data = plain(picture, file_of, "JPEG")
        thumbnail = segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 500)
        assert jpeg.read(data[:2] + thumbnail + data[2:] + b"\xff\xda" * 500).scans == 1

    @pytest.mark.parametrize("side", [128, 2400])
    def test_a_tiff_of_many_jpegs(self, file_of: FileOf, side: int) -> None:
        """Pillow writes one strip, one JPEG, for each 64 KB."""
        image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
        data = file_of(image, "TIFF", compression="jpeg", quality=90)
        if side == 2400:
            assert data.count(b"\xff\xda") > formats.MAX_SCANS
        assert abs(decode(data).astype(int) - np.asarray(image)).max() < 12

    def test_the_scans_of_a_tiffs_jpegs_are_counted_one_by_one(self, picture: Image.Image, file_of: FileOf) -> None:
        data = file_of(picture.convert("L"), "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        found = []
        for scans in (20, 2000):
            many = data[:last] + data[last:-2] * scans + data[-2:]
            found.append(_jpeg_tiff(many, picture.size))
        assert decode(found[0]).shape == (40, 56, 3)
        with pytest.raises(InvalidImage, match="scans; at most"):
            decode(found[1])

    def test_scans_and_pixels_together(self) -> None:
        picture = formats.Picture("JPEG", [], 7000, 7000, 49_000_000, scans=17)
        with pytest.raises(PayloadTooLarge, match="17 scans of 7000 x 7000"):
            formats.refuse(picture, LIMIT)


def _jpeg_tiff(data: bytes, size: tuple[int, int]) -> bytes:
    width, height = size
    tags = {256: [width], 257: [height], 258: [8], 259: [7], 262: [1], 277: [1], 278: [height], 273: [8]}
    return assemble(data, tags | {279: [len(data)]})


RNG = np.random.default_rng(0)
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}
PALETTE = [int(value) * 257 for value in RNG.integers(0, 256, 3 * 256)]


def wanted_of(values: NDArray[Any], bits: int, photometric: int) -> NDArray[Any]:
    """8-bit RGB by the specification."""
    most = 2**bits - 1
    scaled: NDArray[Any] = values * (255 / most)
    if photometric in (0, 1):
        grey = scaled[..., :1] if photometric else 255 - scaled[..., :1]
        return np.repeat(grey, 3, axis=2)
    if photometric == 3:
        colours: NDArray[Any] = np.array(PALETTE[: 3 * 2**bits]).reshape(3, -1) / 257
        return colours[:, values[..., 0]].transpose(1, 2, 0)
    if photometric == 5:
        return 255 * (1 - scaled[..., :3] / 255) * (1 - scaled[..., 3:4] / 255)
    return scaled[..., :3]


class TestTiffLayouts:
    """Each is right, or refused by its name."""

    @pytest.mark.parametrize("photometric", COLOURS)
    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("planar", [1, 2])
    @pytest.mark.parametrize("extra", [(), (0,), (1,), (2,), (2, 0)])
    def test_right_or_refused(
        self, photometric: int, bits: int, order: str, planar: int, extra: tuple[int, ...]
    ) -> None:
        values = RNG.integers(0, 2**bits, (9, 20, COLOURS[photometric] + len(extra)))
        if extra[:1] == (1,):
            values[..., COLOURS[photometric] :] = 2**bits - 1  # opaque: multiplied by 1
        colours = PALETTE[: 3 * 2**bits] if photometric == 3 else ()
        if photometric == 3 and bits > 8:
            return
        refusals: list[str] = []
        for options in LAYOUTS:
            if options.get("predictor") == 2 and bits not in (8, 16):
                continue
            data = tiff(
                values,
                bits=bits,
                photometric=photometric,
                extra=extra,
                order=order,
                planar=planar,
                colours=colours,
                **options,
            )
            try:
                found = decode(data).astype(int)
            except UnsupportedMediaType as error:
                refusals.append(error.message)
                continue
            assert abs(found - wanted_of(values, bits, photometric)).max() <= (3 if photometric == 5 else 1)
        assert all("layout is not read" in said and f"{bits} unsigned bits" in said for said in refusals)

    @pytest.mark.parametrize(
        ("photometric", "bits", "planar", "extra"),
        [
            (0, 1, 1, ()),
            (1, 4, 1, ()),
            (0, 8, 1, ()),
            (0, 16, 1, ()),
            (1, 16, 1, ()),
            (1, 8, 1, (2,)),
            (1, 16, 2, (2,)),
            (2, 8, 1, (1,)),
            (2, 8, 2, ()),
            (2, 16, 1, ()),
            (2, 16, 2, ()),
            (2, 16, 2, (2,)),
            (3, 8, 1, ()),
            (5, 8, 1, (0,)),
            (5, 16, 2, ()),
        ],
    )
    @pytest.mark.parametrize("big", [False, True])
    def test_these_are_read(
        self, photometric: int, bits: int, planar: int, extra: tuple[int, ...], big: bool
    ) -> None:
        values = RNG.integers(0, 2**bits, (9, 20, COLOURS[photometric] + len(extra)))
        values[..., COLOURS[photometric] :] = 2**bits - 1
        colours = PALETTE if photometric == 3 else ()
        data = tiff(values, bits=bits, photometric=photometric, extra=extra, planar=planar, colours=colours, big=big)
        difference = decode(data) - wanted_of(values, bits, photometric)
        assert abs(difference).max() <= (3 if photometric == 5 else 1)

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"bits": 12}, "12 unsigned bits"),
            ({"tags": {339: [2]}}, "8 signed bits"),
            ({"tags": {262: [8]}}, "Lab"),
            ({"tags": {262: [4]}}, "mask"),
            ({"tags": {262: [34892]}}, "photometric 34892"),
            ({"tags": {259: [6]}}, "JPEG of TIFF 6.0"),
            ({"tags": {259: [34925]}}, "LZMA"),
            ({"tags": {259: [50000]}}, "Zstandard"),
            ({"tags": {259: [12345]}}, "compression 12345"),
            ({"tags": {259: [4]}}, "fax 4"),
            ({"tags": {317: [3]}}, "predictor 3"),
            ({"fill": 2}, "fill order 2"),
            ({"tags": {284: [3]}}, "layout is not read"),
        ],
    )
    def test_these_are_refused_by_name(self, change: dict[str, Any], name: str) -> None:
        with pytest.raises(UnsupportedMediaType, match=name):
            decode(tiff(np.zeros((4, 6, 1), int), **change))

    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize(("most", "taken"), [(65535, True), (65536, False), (2**32 - 1, False)])
    def test_32_bits_if_16_hold_them(self, order: str, most: int, taken: bool) -> None:
        data = tiff(np.array([[[0], [most]]]), bits=32, order=order)
        if taken:
            assert decode(data)[0, :, 0].tolist() == [0, 255]
        else:
            with pytest.raises(InvalidImage, match="beyond 16 bits"):
                decode(data)

    def test_a_palette_of_8_bits(self) -> None:
        values = RNG.integers(0, 4, (5, 7, 1))
        data = tiff(values, bits=2, photometric=3, colours=[colour // 257 for colour in PALETTE[:12]])
        assert np.array_equal(decode(data), wanted_of(values, 2, 3))

    @pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "tiff_lzw", "packbits"])
    @pytest.mark.parametrize("white", [0, 255])
    def test_faxes(self, picture: Image.Image, file_of: FileOf, compression: str, white: int) -> None:
        page = picture.convert("1")
        data = file_of(page, "TIFF", compression=compression, tiffinfo={262: 0} if not white else {})
        assert np.array_equal(decode(data), np.asarray(page.convert("RGB")))

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
    def test_jpeg_inside(self, picture: Image.Image, file_of: FileOf, mode: str) -> None:
        image = picture.convert(mode)
        data = file_of(image, "TIFF", compression="jpeg", quality=98)
        assert abs(decode(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 6

    @pytest.mark.parametrize(
        "tags",
        [
            {273: []},
            {279: []},
            {273: [8]},
            {273: [2**31] * 2},
            {256: []},
            {256: [0]},
            {257: [9, 9]},
            {258: [8] * 2},
            {262: []},
            {277: [0]},
            {278: [0]},
            {338: [0, 0, 0]},
        ],
    )
    def test_a_broken_directory(self, tags: dict[int, Sequence[int]]) -> None:
        with pytest.raises(RequestError) as error:
            decode(tiff(RNG.integers(0, 256, (8, 6, 3)), photometric=2, rows=4, compression=8, tags=tags))
        assert error.value.status in (400, 415)

    def test_strips_that_are_missing_do_not_become_black(self) -> None:
        with pytest.raises(InvalidImage, match="2 strips or tiles are wanted, and 1 are there"):
            decode(tiff(np.full((8, 6, 1), 9), rows=4, tags={273: [8], 279: [24]}))

    def test_later_pictures_and_loops_are_not_looked_at(self) -> None:
        values = RNG.integers(0, 256, (8, 6, 1))
        data = tiff(values)
        assert np.array_equal(decode(data[:-4] + struct.pack("<I", len(data) - 100))[..., :1], values)


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"rows": 4},
    {"tile": (16, 16)},
    {"compression": 8, "rows": 4},
    {"compression": 8, "predictor": 2},
    {"compression": 32773},
    {"compression": 8, "tile": (16, 16), "big": True},
    {"fill": 2},
]


class TestBombs:
    """Small files that would take much time or memory; each is answered or refused at once."""

    def refused(self, data: bytes, error: type[RequestError], match: str) -> None:
        started = time.perf_counter()
        with pytest.raises(error, match=match):
            formats.decode(data, LIMIT)
        assert time.perf_counter() - started < 1

    def test_a_tiffs_tile(self) -> None:
        """2 MB in, 676 million pixels out, of a picture of 16 x 16."""
        tile = zlib.compress(bytes(2000), 9)
        tags = {256: [16], 257: [16], 258: [8], 259: [8], 262: [1], 277: [1], 322: [26000], 323: [26000]}
        data = assemble(tile, tags | {324: [8], 325: [len(tile)]})
        self.refused(data, PayloadTooLarge, "16 x 16 pixels, in tiles that together have 676000000")
        assert payloads.decoded_pixels(data) == 676_000_000

    def test_a_tiffs_strips(self) -> None:
        values = np.zeros((16, 16, 1), int)
        assert decode(tiff(values, compression=8, tags={278: [2**31 - 1]})).shape == (16, 16, 3)
        assert decode(tiff(values, compression=8, tags={279: [2**32 - 1]})).shape == (16, 16, 3)
        self.refused(tiff(values, tags={257: [40_000], 278: [1]}), PayloadTooLarge, "40000 strips or tiles")
        self.refused(tiff(values, tags={256: [2**31]}), PayloadTooLarge, "2147483648 x 16")

    def test_a_tiffs_jpegs(self, file_of: FileOf) -> None:
        large = file_of(Image.new("L", (6000, 6000)), "JPEG")
        self.refused(_jpeg_tiff(large, (16, 16)), InvalidImage, "other sizes than the 16 x 16")
        small = file_of(Image.new("L", (8, 8)), "JPEG")
        tags = {256: [8], 257: [80_000], 258: [8], 259: [7], 262: [1], 277: [1], 278: [8]}
        data = assemble(small, tags | {273: [8] * 10_000, 279: [len(small)] * 10_000})
        self.refused(data, PayloadTooLarge, "10000 JPEGs")

    def test_a_tiffs_tags(self) -> None:
        values = np.zeros((16, 16, 1), int)
        self.refused(tiff(values, tags={258: [8] * 3_000_000}), InvalidImage, "tag 258 is broken")
        assert decode(tiff(values, tags={700: [65] * 3_000_000})).shape == (16, 16, 3)
        endless = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(2_000_000)
        self.refused(endless, InvalidImage, "tag 256")

    def test_a_gifs_frame_beyond_its_canvas(self, picture: Image.Image, file_of: FileOf) -> None:
        data = file_of(picture.quantize(8), "GIF")
        frame = data.index(b"," + struct.pack("<HHHH", 0, 0, 56, 40))
        data = data[: frame + 5] + struct.pack("<HH", 60000, 60000) + data[frame + 9 :]
        self.refused(data, PayloadTooLarge, "60000 x 60000")

    def test_a_webps_canvas(self, picture: Image.Image, file_of: FileOf) -> None:
        data = dressed("WEBP", plain(picture, file_of, "WEBP"), exif(TURNED))
        self.refused(data[:24] + b"\xff" * 6 + data[30:], PayloadTooLarge, "16777216 x 16777216")

    def test_a_long_side(self) -> None:
        header = struct.pack(">IIBBBBB", 1, 40_000_000, 1, 0, 0, 0, 0)
        data = png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        self.refused(data, PayloadTooLarge, "at most 500000 of a side")

    def test_pieces_beyond_number(self, picture: Image.Image, file_of: FileOf) -> None:
        data = plain(picture, file_of, "JPEG")
        self.refused(data[:2] + segment(0xFE, b"") * 500_000 + data[2:], InvalidImage, "16384 segments")
        self.refused(data[:2] + b"\xff\xd8" * 500_000 + data[2:], InvalidImage, "16384 segments")
        data = plain(picture, file_of, "PNG")
        self.refused(data[:33] + chunk(b"teSt", b"") * 500_000 + data[33:], InvalidImage, "65536 chunks")

    def test_fill_bytes_without_end(self, picture: Image.Image, file_of: FileOf) -> None:
        """Pillow went over them again for each block of 64 KB."""
        data = plain(picture, file_of, "JPEG")
        self.refused(data[:-2] + b"\xff" * 4_000_000, InvalidImage, "broken")

    def test_more_pixels_in_a_png_than_it_says(self, picture: Image.Image, file_of: FileOf) -> None:
        rows = b"".join(b"\0" + bytes(row) for row in np.asarray(picture).reshape(40, -1))
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 56, 40, 8, 2, 0, 0, 0))
        data = (
            png.SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows + bytes(50_000_000), 9)) + chunk(b"IEND", b"")
        )
        started = time.perf_counter()
        assert np.array_equal(decode(data), np.asarray(picture))
        assert time.perf_counter() - started < 1
