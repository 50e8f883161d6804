"""Encoded images and ready tensors -> what the network sees, or an error that says what came."""

from __future__ import annotations

import base64
import io
import math
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from handlers.images import cropping, formats, geometry, npy_files, payloads, preparation
from handlers.images.batching import Batcher
from handlers.images.preprocess import INTERPOLATIONS, Preprocess
from handlers.protocol.errors import InvalidImage, PayloadTooLarge, RequestError, UnsupportedMediaType
from handlers.protocol.request import caught

FileOf = Callable[..., bytes]
LIMIT = 50_000_000
SMALL = Preprocess(8, 10)
LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
]
MARKER = b"S3CRET-of-a-user"


def decode(data: bytes) -> NDArray[np.uint8]:
    image = formats.decode(data, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"") -> bytes:
    """A PNG by hand: Pillow writes neither 16 bits a channel in colour nor headers that lie."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class TestFormats:
    @pytest.mark.parametrize(("kind", "options"), LOSSLESS)
    def test_lossless_formats_arrive_as_they_are(
        self, picture: Image.Image, file_of: FileOf, kind: str, options: dict[str, Any]
    ) -> None:
        assert np.array_equal(decode(file_of(picture, kind, **options)), np.asarray(picture))

    @pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("GIF", {})])
    def test_lossy_formats_arrive_nearly(
        self, picture: Image.Image, file_of: FileOf, kind: str, options: dict[str, Any]
    ) -> None:
        difference = decode(file_of(picture, kind, **options)).astype(int) - np.asarray(picture)
        assert abs(difference).mean() < 12

    def test_of_an_animation_the_first_frame(self, picture: Image.Image, file_of: FileOf) -> None:
        others = [ImageOps.invert(picture), ImageOps.mirror(picture)]
        for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
            data = file_of(picture, kind, save_all=True, append_images=others, **options)
            difference = decode(data).astype(int) - np.asarray(picture)
            assert abs(difference).mean() < 12, kind

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_exif_orientation_is_applied(
        self, picture: Image.Image, file_of: FileOf, orientation: int, kind: str
    ) -> None:
        back = {  # what undoes the viewer's turn: the sensor's own view of the upright image
            1: None,
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }[orientation]
        sensor = picture if back is None else picture.transpose(back)
        exif = Image.Exif()
        exif[0x0112] = orientation
        finest: dict[str, dict[str, Any]] = {
            "WEBP": {"lossless": True},
            "JPEG": {"quality": 100, "subsampling": 0},
        }
        decoded = decode(file_of(sensor, kind, exif=exif, **finest.get(kind, {})))
        assert decoded.shape == np.asarray(picture).shape
        assert abs(decoded.astype(int) - np.asarray(picture)).max() <= (40 if kind == "JPEG" else 0)

    def test_what_is_no_image_is_refused_as_a_medium(self) -> None:
        for data in (b"%PDF-1.7", b"\x00" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"x"):
            with pytest.raises(UnsupportedMediaType) as error:
                formats.decode(data, LIMIT)
            assert f"{len(data)} bytes" in error.value.message

    @pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "EPS"])
    def test_other_formats_that_pillow_knows_are_refused(
        self, picture: Image.Image, file_of: FileOf, kind: str
    ) -> None:
        """EPS above all: Pillow hands it to a PostScript interpreter."""
        with pytest.raises(RequestError):
            formats.decode(file_of(picture, kind), LIMIT)


class TestModes:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
    def test_grey(self, picture: Image.Image, file_of: FileOf, kind: str) -> None:
        grey = picture.convert("L")
        decoded = decode(file_of(grey, kind))
        assert (decoded[..., 0] == decoded[..., 1]).all()
        assert (decoded[..., 0] == decoded[..., 2]).all()
        assert abs(decoded[..., 0].astype(int) - np.asarray(grey)).max() <= (40 if kind == "JPEG" else 0)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_alpha_is_dropped_not_blended(self, picture: Image.Image, file_of: FileOf, kind: str, mode: str) -> None:
        """Of a fully transparent image the colours are still there."""
        base = picture.convert("L") if mode == "LA" else picture
        base = base.copy()
        base.putalpha(0)
        assert base.mode == mode
        wanted = np.asarray(picture.convert("L").convert("RGB") if mode == "LA" else picture)
        assert np.array_equal(decode(file_of(base, kind)), wanted)

    @pytest.mark.parametrize("transparency", [None, 0, bytes(range(256))])
    def test_palettes(self, picture: Image.Image, file_of: FileOf, transparency: int | bytes | None) -> None:
        """With and without transparent entries; of those Pillow warns, which is an error in these tests."""
        palette = picture.quantize(256)
        options = {} if transparency is None else {"transparency": transparency}
        decoded = decode(file_of(palette, "PNG", **options))
        assert np.array_equal(decoded, np.asarray(palette.convert("RGB")))

    def test_cmyk_jpeg(self, picture: Image.Image, file_of: FileOf) -> None:
        decoded = decode(file_of(picture.convert("CMYK"), "JPEG", quality=95))
        assert abs(decoded.astype(int) - np.asarray(picture)).mean() < 8

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_one_bit(self, picture: Image.Image, file_of: FileOf, kind: str) -> None:
        bits = picture.convert("1")
        decoded = decode(file_of(bits, kind))
        assert set(np.unique(decoded)) == {0, 255}
        assert np.array_equal(decoded, np.asarray(bits.convert("RGB")))

    RAMP = np.array([[0, 1, 128, 129, 255, 256, 257, 32767, 32768, 65279, 65407, 65535]], np.uint16)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_grey_is_scaled_not_clipped(self, file_of: FileOf, kind: str) -> None:
        """Pillow's own conversion makes white of everything above 255."""
        decoded = decode(file_of(Image.fromarray(self.RAMP), kind))
        assert decoded[0, :, 0].tolist() == np.rint(self.RAMP[0] / 257).astype(int).tolist()
        assert decoded[0, -1].tolist() == [255, 255, 255]

    def test_16_bit_grey_of_the_other_byte_order(self) -> None:
        """A big-endian TIFF by hand: one strip of two pixels."""
        entries = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1)]
        entries += [(278, 3, 1), (279, 4, 4)]
        fields = b"".join(
            struct.pack(">HHI", tag, kind, 1)
            + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
            for tag, kind, value in entries
        )
        data = b"MM\x00*" + struct.pack(">IH", 8, len(entries)) + fields + struct.pack(">I", 0)
        assert len(data) == 122
        assert decode(data + struct.pack(">HH", 0x8000, 0xFFFF))[0, :, 0].tolist() == [128, 255]

    def test_16_bit_grey_is_turned_upright_too(self, file_of: FileOf) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3
        decoded = decode(file_of(Image.fromarray(self.RAMP), "PNG", exif=exif))
        assert decoded[0, 0, 0] == 255
        assert decoded[0, -1, 0] == 0

    @pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
    def test_16_bit_colour(self, colour: int, channels: int) -> None:
        values = [(0, 0x8000, 0xFFFF, 0xFFFF)[:channels], (0xFFFF, 0x4000, 0, 0)[:channels]]
        rows = b"\x00" + b"".join(struct.pack(f">{channels}H", *pixel) for pixel in values)
        decoded = decode(png(2, 1, 16, colour, rows))
        assert abs(decoded[0].astype(int) - [[0, 128, 255], [255, 64, 0]]).max() <= 1

    @pytest.mark.parametrize("values", [[[0.0, 1.0]], [[0.0, 255.0]], [[float("nan"), 1e9]]])
    def test_floats_are_refused(self, file_of: FileOf, values: list[list[float]]) -> None:
        with pytest.raises(InvalidImage, match="32-bit floats"):
            decode(file_of(Image.fromarray(np.array(values, np.float32)), "TIFF"))

    @pytest.mark.parametrize(("values", "taken"), [([[0, 65535]], True), ([[0, 65536]], False), ([[-1, 9]], False)])
    def test_32_bit_integers_only_where_16_bits_hold_them(
        self, file_of: FileOf, values: list[list[int]], taken: bool
    ) -> None:
        data = file_of(Image.fromarray(np.array(values, np.int32)), "TIFF")
        if taken:
            assert decode(data)[0, :, 0].tolist() == [0, 255]
        else:
            with pytest.raises(InvalidImage, match="beyond 16 bits"):
                decode(data)


@caught
def prepare(data: bytes) -> list[cropping.Crop | npy_files.Normalised]:
    return preparation.prepare(data, SMALL, 1_000_000)


def prepare_or_refuse(data: bytes) -> None:
    """Any bytes are a crop of the right form or a RequestError; a warning is neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it could mend; the server's log bears that
        result = prepare(data)
    if isinstance(result, RequestError):
        assert 0 < len(result.message) < 1000
    else:
        assert [item.shape for item in result] == [(8, 8, 3)]


BROKEN_KINDS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("GIF", {}),
    *LOSSLESS,
]


class TestBrokenFiles:
    @pytest.fixture(params=BROKEN_KINDS, ids=lambda param: "-".join(map(str, (param[0], *param[1].values()))))
    def whole(self, request: pytest.FixtureRequest, picture: Image.Image, file_of: FileOf) -> bytes:
        kind, options = request.param
        exif = Image.Exif()
        exif[0x0112] = 6  # there shall be metadata to break
        return file_of(picture, kind, **options, **({"exif": exif} if kind not in ("GIF", "BMP") else {}))

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_flipped_and_cut_bytes(self, whole: bytes, data: st.DataObject) -> None:
        broken = bytearray(whole)
        # Headers and directories lie at the start, or (TIFF) at the end; in between are only pixels.
        spots = st.one_of(st.integers(0, min(120, len(whole) - 1)), st.integers(0, len(whole) - 1))
        for spot in data.draw(st.lists(spots, max_size=6)):
            broken[spot] = data.draw(st.integers(0, 255))
        end = data.draw(st.one_of(st.just(len(broken)), st.integers(0, len(broken))))
        prepare_or_refuse(bytes(broken[:end]))

    def test_cut_in_half_is_refused(self, whole: bytes) -> None:
        with pytest.raises(RequestError):
            preparation.prepare(whole[: len(whole) // 2], SMALL, LIMIT)

    def test_cut_anywhere_in_the_header(self, whole: bytes) -> None:
        for end in range(min(200, len(whole) // 2)):
            with pytest.raises(RequestError):
                preparation.prepare(whole[:end], SMALL, LIMIT)

    def test_cut_in_its_header_is_broken_not_unknown(self, whole: bytes) -> None:
        for end in range(12, 26):
            with pytest.raises(InvalidImage, match="broken"):
                preparation.prepare(whole[:end], SMALL, LIMIT)

    def test_a_refusal_does_not_hold_what_came(self, whole: bytes) -> None:
        with pytest.raises(RequestError) as error:
            preparation.prepare(MARKER + whole, SMALL, LIMIT)
        assert MARKER.decode() not in error.value.message

    @settings(max_examples=200)
    @given(
        st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*"]),
        st.binary(max_size=200),
    )
    @example(b"RIFF\x00\x00\x00\x00WEBP", b"")
    def test_noise_behind_a_magic_number(self, magic: bytes, noise: bytes) -> None:
        prepare_or_refuse(magic + noise)


class TestSlowFiles:
    """Small, and of an allowed size, but with work for minutes."""

    @pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)])
    def test_a_run_length_encoded_bmp(self, bits: int, compression: int) -> None:
        palette = b"\0\0\0\0" * 2**bits
        runs = b"\x04\0\0\0" * 4 + b"\0\x01"
        start = 14 + 40 + len(palette)
        header = struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start)
        info = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, bits, compression, len(runs), 0, 0, 2**bits, 0)
        with pytest.raises(UnsupportedMediaType, match="run-length"):
            preparation.prepare(header + info + palette + runs, SMALL, LIMIT)

    @pytest.mark.parametrize(("scans", "taken"), [(90, True), (5000, False)])
    def test_a_jpeg_of_many_scans(self, picture: Image.Image, file_of: FileOf, scans: int, taken: bool) -> None:
        data = file_of(picture, "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        assert data.count(b"\xff\xda") <= 10
        many = data[:last] + data[last:-2] * (scans - data.count(b"\xff\xda") + 1) + data[-2:]
        if taken:
            assert formats.decode(many, LIMIT).size == picture.size
        else:
            with pytest.raises(InvalidImage, match="5000 scans; at most 100"):
                formats.decode(many, LIMIT)


class TestSizes:
    def test_a_bomb_is_refused_by_its_header(self) -> None:
        """2.5 thousand million pixels announced in under 100 bytes."""
        data = png(50_000, 50_000, 8, 2)
        assert len(data) < 100
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(PayloadTooLarge, match="50000 x 50000") as error:
            preparation.prepare(data, SMALL, LIMIT)
        elapsed, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert error.value.status == 413
        assert elapsed < 1
        assert peak < 5_000_000

    def test_at_the_limit_and_one_beyond(self, picture: Image.Image, file_of: FileOf) -> None:
        data, pixels = file_of(picture, "PNG"), picture.width * picture.height
        assert formats.decode(data, pixels).size == picture.size
        with pytest.raises(PayloadTooLarge, match=str(pixels - 1)):
            formats.decode(data, pixels - 1)

    @pytest.mark.parametrize("length", [762, 50_000, 400_000])
    @pytest.mark.parametrize("upright", [True, False])
    def test_only_the_crop_of_a_strip_is_resized(self, length: int, upright: bool) -> None:
        """Its shorter side resized from 1 to 256, a strip of 762 pixels would become one of 195,072."""
        size = (1, length) if upright else (length, 1)
        image, preprocess = Image.new("RGB", size, (7, 8, 9)), Preprocess(224, 256)
        image.paste((200, 8, 9), (size[0] // 2, size[1] // 2, *size))
        tracemalloc.start()
        started = time.perf_counter()
        item = cropping.crop(image, preprocess)
        elapsed, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert elapsed < 0.2
        assert peak < 5_000_000
        across = item if upright else item.transpose(1, 0, 2)
        assert across.shape == (224, 224, 3)
        assert (across == across[:, :1]).all()
        assert across[0, 0].tolist() == [19, 8, 9]  # 223.5 / 256 of the way between two pixels are seen
        assert across[-1, 0].tolist() == [188, 8, 9]

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming"])
    @pytest.mark.parametrize(
        "size", [(90, 5), (5, 90), (2000, 60), (60, 2000), (700, 31), (37, 4000), (1, 300), (999, 3)]
    )
    @pytest.mark.parametrize(("side", "resize"), [(32, 32), (28, 32), (29, 33)])
    def test_a_strips_crop_is_that_of_the_whole(
        self, size: tuple[int, int], interpolation: str, side: int, resize: int
    ) -> None:
        values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image, preprocess = Image.fromarray(values), Preprocess(side, resize, interpolation=interpolation)
        width, height = geometry.resized_size(*size, preprocess)
        assert width * height > geometry.MAX_ELONGATION * resize**2
        # Pillow 13 takes rows before columns in some sizes: the order is fixed here, for each way rounds for itself.
        filter_ = INTERPOLATIONS[interpolation]
        ways = [
            image.resize((width, size[1]), filter_).resize((width, height), filter_),
            image.resize((size[0], height), filter_).resize((width, height), filter_),
        ]
        left, top = (width - side) // 2, (height - side) // 2
        wholes = [np.asarray(way.crop((left, top, left + side, top + side))).astype(int) for way in ways]
        found = cropping.crop(image, preprocess)
        assert min(abs(found - whole).max() for whole in wholes) <= 2

    @pytest.mark.parametrize("size", [160, 176, 192, 208, 224, 236, 240, 256, 260, 288, 299, 300, 320, 380, 384, 448])
    @pytest.mark.parametrize("crop_pct", [0.875, 0.882, 0.9, 0.95, 0.96, 0.965, 1.0])
    def test_the_crop_begins_where_the_libraries_begin_it(self, size: int, crop_pct: float) -> None:
        """torchvision's CenterCrop, which timm uses too, and transformers' center_crop (slow and fast)."""
        resize = math.floor(size / crop_pct)
        for side in range(resize, resize + 40):
            assert geometry.crop_start(side, size, "even") == int(round((side - size) / 2.0))  # noqa: RUF046, as it stands there
            assert geometry.crop_start(side, size, "down") == int((side - size) / 2.0) == (side - size) // 2

    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (8, 8), (9, 10), (10, 9), (11, 300)])
    @pytest.mark.parametrize("mode", ["shortest_edge", "square"])
    @pytest.mark.parametrize(("side", "resize"), [(8, 8), (8, 9), (7, 10), (1, 1)])
    def test_every_shape_becomes_a_crop(self, size: tuple[int, int], mode: str, side: int, resize: int) -> None:
        """One pixel, thin strips, smaller and larger than the crop; odd and even margins."""
        item = cropping.crop(Image.new("RGB", size, (1, 2, 3)), Preprocess(side, resize, mode))
        assert item.shape == (side, side, 3)
        assert item.dtype == np.uint8
        assert (item == (1, 2, 3)).all()  # a margin outside the image would be black

    @pytest.mark.parametrize(
        ("size", "mode", "wanted"),
        [
            ((100, 50), "shortest_edge", (20, 10)),
            ((50, 100), "shortest_edge", (10, 20)),
            ((100, 66), "shortest_edge", (15, 10)),  # 15.15: rounded down, as transformers does
            ((66, 131), "shortest_edge", (10, 19)),  # 19.85
            ((100, 50), "square", (10, 10)),
        ],
    )
    def test_resized_size(self, size: tuple[int, int], mode: str, wanted: tuple[int, int]) -> None:
        assert geometry.resized_size(*size, Preprocess(8, 10, mode)) == wanted

    def test_the_crop_is_the_centre(self) -> None:
        image = Image.fromarray(np.arange(10 * 14, dtype=np.uint8).reshape(10, 14)).convert("RGB")
        cut = cropping.crop(image, Preprocess(8, 10, interpolation="nearest"))
        assert np.array_equal(cut, np.asarray(image)[1:9, 3:11])


def npy_header(text: str, version: int = 1) -> bytes:
    content = text.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(content)) + content


class TestReadyTensors:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    @pytest.mark.parametrize(("shape", "count"), [((3, 8, 8), 1), ((1, 3, 8, 8), 1), ((4, 3, 8, 8), 4)])
    def test_one_or_several(
        self, npy_of: Callable[..., bytes], dtype: type[np.floating[Any]], shape: tuple[int, ...], count: int
    ) -> None:
        values = np.random.default_rng(0).normal(size=shape).astype(dtype)
        items = preparation.prepare(npy_of(values), SMALL, LIMIT)
        assert len(items) == count
        assert all(item.dtype == dtype for item in items)
        assert np.array_equal(np.stack(items), values.reshape(-1, 3, 8, 8))

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((3, 8, 8), np.float64),
            np.zeros((3, 8, 8), np.uint8),
            np.zeros((3, 8, 8), ">f4"),  # the other byte order
            np.zeros((8, 8, 3), np.float32),
            np.zeros((3, 8, 9), np.float32),
            np.zeros((2, 2, 3, 8, 8), np.float32),
            np.zeros((8, 8), np.float32),
            np.zeros((), np.float32),
            np.zeros((0, 3, 8, 8), np.float32),
            np.asfortranarray(np.zeros((3, 8, 8), np.float32)),
            np.full((3, 8, 8), None),  # objects: a pickle
            np.full((3, 8, 8), np.nan, np.float32),
            np.full((3, 8, 8), -np.inf, np.float16),
        ],
        ids=lambda array: f"{array.dtype}{array.shape}",
    )
    def test_other_tensors_are_refused(self, npy_of: Callable[..., bytes], array: NDArray[Any]) -> None:
        with pytest.raises(InvalidImage):
            preparation.prepare(npy_of(array), SMALL, LIMIT)

    def test_one_nan_is_enough(self, npy_of: Callable[..., bytes]) -> None:
        values = np.zeros((2, 3, 8, 8), np.float32)
        values[1, 2, 7, 7] = np.nan
        with pytest.raises(InvalidImage, match="NaN"):
            preparation.prepare(npy_of(values), SMALL, LIMIT)

    def test_a_pickle_is_never_loaded(self) -> None:
        """A pickle that would run code if it were."""
        bomb = b"cbuiltins\nexec\n(S'raise SystemExit(13)'\ntR."
        data = npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (3, 8, 8)}") + bomb
        with pytest.raises(InvalidImage):
            preparation.prepare(data, SMALL, LIMIT)

    @pytest.mark.parametrize("change", [-1, 1, -(3 * 8 * 8 * 4), 10_000])
    def test_bytes_must_be_as_many_as_the_header_says(self, npy_of: Callable[..., bytes], change: int) -> None:
        data = npy_of(np.zeros((3, 8, 8), np.float32))
        with pytest.raises(InvalidImage, match=r"but \d+ came"):
            preparation.prepare(data[:change] if change < 0 else data + b"\x00" * change, SMALL, LIMIT)

    def test_as_many_pixels_as_an_image_may_have(self, npy_of: Callable[..., bytes]) -> None:
        data = npy_of(np.zeros((4, 3, 8, 8), np.float16))
        assert len(preparation.prepare(data, SMALL, 4 * 64)) == 4
        with pytest.raises(PayloadTooLarge):
            preparation.prepare(data, SMALL, 4 * 64 - 1)

    def test_a_header_that_announces_terabytes_allocates_nothing(self) -> None:
        data = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 3, 8, 8)}")
        tracemalloc.start()
        with pytest.raises(InvalidImage):
            preparation.prepare(data, SMALL, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5_000_000

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "\x00\x00",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 8, 8)",  # tokenize.TokenError in NumPy
            "'''",
            "(" * 5000,
            "{'descr': (), 'fortran_order': False, 'shape': (3, 8, 8)}",  # IndexError in NumPy
            "{b'descr': 1, 1: 2}",  # TypeError in NumPy, which sorts the keys
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5, 3, 8, 8)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 8, 8)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': None}",
            # Python refuses to write integers of more than 4300 digits, also into a message.
            "{'descr': '<f4', 'fortran_order': False, 'shape': (%s, 3, 8, 8)}" % ("9" * 4299),
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0x%s, 3, 8, 8)}" % ("f" * 9000),
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-0x%s,)}" % ("f" * 9000),
            "{'descr': 'no such type', 'fortran_order': False, 'shape': (3, 8, 8)}",
            f"{{'descr': [('{MARKER.decode()}', '<f4')], 'fortran_order': False, 'shape': (3, 8, 8)}}",
            "__import__('os').abort()",
            " " * 60_000,
        ],
        ids=range(17),
    )
    @pytest.mark.parametrize("version", [1, 2, 3, 9])
    def test_a_broken_header_is_refused(self, header: str, version: int) -> None:
        with pytest.raises(InvalidImage) as error:
            preparation.prepare(npy_header(header, version), SMALL, LIMIT)
        assert MARKER.decode() not in error.value.message
        assert len(error.value.message) < 1000

    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.integers(0, 140), st.integers(0, 255)), max_size=4), st.integers(0, 900))
    def test_flipped_and_cut_bytes(self, changes: list[tuple[int, int]], end: int) -> None:
        stream = io.BytesIO()
        np.save(stream, np.zeros((3, 8, 8), np.float32))
        data = bytearray(stream.getvalue())
        for place, value in changes:
            data[place] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = prepare(bytes(data[:end]))
        if isinstance(result, RequestError):
            assert 0 < len(result.message) < 1000
        else:
            assert [item.shape for item in result] == [(3, 8, 8)]


class TestBase64:
    DATA = bytes(range(256))
    TEXT = base64.b64encode(DATA).decode()

    @pytest.mark.parametrize(
        "value",
        [
            TEXT,
            {"b64": TEXT},
            f"data:image/png;base64,{TEXT}",
            {"b64": f"data:;base64,{TEXT}"},
            f"{TEXT[:76]}\n{TEXT[76:]}\n",  # as the base64 command wraps
            f"  {TEXT}\r\n",
        ],
    )
    def test_spellings(self, value: object) -> None:
        assert payloads.from_base64(value) == self.DATA

    @pytest.mark.parametrize(
        "value",
        [
            TEXT[:-1],  # padding lost
            TEXT + "=",
            "a",
            "ab=c",
            "-_-_",  # the alphabet for URLs
            "größe==",
            "\ud800",
            "https://example.org/cat.jpg",
            "%%%%",
            {"b64": "a"},
        ],
    )
    def test_what_is_not_base64(self, value: object) -> None:
        with pytest.raises(RequestError, match="not base64") as error:
            payloads.from_base64(value)
        assert error.value.status == 400

    @pytest.mark.parametrize("value", ["", "   ", "data:image/png;base64,", "data:", {"b64": ""}])
    def test_nothing(self, value: object) -> None:
        with pytest.raises(RequestError, match="empty"):
            payloads.from_base64(value)

    @pytest.mark.parametrize(
        "value",
        [None, 5, True, ["YQ=="], [[]], {}, {"b64": 5}, {"b64": None}, {"b64": "YQ==", "x": 1}, {"B64": "YQ=="}],
    )
    def test_what_is_no_string(self, value: object) -> None:
        with pytest.raises(RequestError, match="wanted"):
            payloads.from_base64(value)

    def test_messages_do_not_hold_what_came(self) -> None:
        marker = MARKER.decode()
        for value in (marker, f"data:{marker}", {"b64": f"?{marker}"}):
            with pytest.raises(RequestError) as error:
                payloads.from_base64(value)
            assert marker not in error.value.message

    def test_keys_are_cut_and_can_be_written(self) -> None:
        with pytest.raises(RequestError) as error:
            payloads.from_base64({"k" * 9000: 1, "\ud800": 2})
        assert len(error.value.message) < 300
        error.value.message.encode("utf-8")


class TestBatcher:
    PREPROCESS = Preprocess(8, 8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    def crops(self, count: int) -> NDArray[np.uint8]:
        crops = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        crops[0, 0, 0], crops[0, 0, 1] = 0, 255
        return crops

    def normalised(self, crops: NDArray[np.uint8]) -> NDArray[np.float64]:
        mean, std = np.array(self.PREPROCESS.mean), np.array(self.PREPROCESS.std)
        values: NDArray[np.float64] = (crops / 255 - mean) / std
        return values.transpose(0, 3, 1, 2)

    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_normalisation(self, count: int) -> None:
        crops = self.crops(count)
        batch = Batcher(self.PREPROCESS, torch.device("cpu"), torch.float32)(list(crops))
        assert batch.dtype == torch.float32
        assert np.abs(batch.double().numpy() - self.normalised(crops)).max() < 1e-6

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
    def test_half_precision_is_rounded_once(self, dtype: torch.dtype, tolerance: float) -> None:
        crops = self.crops(2)
        batch = Batcher(self.PREPROCESS, torch.device("cpu"), dtype)(list(crops))
        assert batch.dtype == dtype
        assert np.abs(batch.double().numpy() - self.normalised(crops)).max() < tolerance

    @pytest.mark.parametrize("pattern", ["c", "t", "ct", "tc", "ccttct", "ttt", "tccct"])
    def test_crops_and_tensors_keep_their_order(self, pattern: str) -> None:
        crops = self.crops(len(pattern))
        wanted = self.normalised(crops).astype(np.float32)
        inputs = [crops[i] if kind == "c" else wanted[i] for i, kind in enumerate(pattern)]
        batch = Batcher(self.PREPROCESS, torch.device("cpu"), torch.float32)(inputs)
        assert batch.shape == (len(pattern), 3, 8, 8)
        assert np.abs(batch.numpy() - wanted).max() < 1e-6

    def test_tensors_of_both_precisions_in_one_batch(self) -> None:
        half, full = np.full((3, 8, 8), 0.5, np.float16), np.full((3, 8, 8), 0.1, np.float32)
        batch = Batcher(self.PREPROCESS, torch.device("cpu"), torch.float32)([half, full])
        assert batch[0].unique().tolist() == [0.5]
        assert batch[1].unique().tolist() == [np.float32(0.1)]

    @pytest.mark.parametrize("pattern", ["cc", "ct"])
    def test_channels_last(self, pattern: str) -> None:
        ready = np.zeros((3, 8, 8), np.float32)
        inputs = [self.crops(1)[0] if kind == "c" else ready for kind in pattern]
        batch = Batcher(self.PREPROCESS, torch.device("cpu"), torch.float32)(inputs)
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("preprocess", [SMALL, Preprocess(1, 1)])
def test_a_blank_is_a_crop(preprocess: Preprocess) -> None:
    blank = cropping.blank(preprocess)
    assert blank.shape == (preprocess.size, preprocess.size, 3)
    assert blank.dtype == np.uint8
    assert blank.max() == 0
