"""Encoded pictures -> upright 8-bit RGB.

Each format's reader finds out what decoding would cost before a decoder sees the file. It passes on only what decides
pixels, so that no EXIF, profile, text, second picture or trailing byte can make a picture fail or cost time.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from handlers.images.formats import ifd, jpeg, png, tiff, webp
from handlers.images.formats.orientation import UPRIGHT, orientation, turned
from handlers.protocol.errors import InvalidImage, PayloadTooLarge, RequestError, UnsupportedMediaType

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Decoding a progressive JPEG goes over the whole image once per scan. Encoders write about 10 scans. A few kilobytes
# can hold thousands, which take minutes.
MAX_SCANS = 100
MAX_SIDE = 500_000  # pixels; Pillow keeps a pointer for each row, and 50 million rows of one pixel are a gigabyte
MAX_PASSES = 16  # over a picture of the largest size allowed

# Pillow's own check raises at twice its limit and only warns below. `refuse` has one limit, before decoding.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Picture:
    """A file that is not decoded yet.

    format: one of FORMATS.
    files: what the decoder gets; one file per plane if colours lie in planes.
    width, height: in pixels, as stored, before the picture is turned upright.
    pixels: that decoding touches, at least.
    orientation: EXIF's or XMP's, 1 to 8.
    scans: how many times decoding goes over the picture.
    inverted: whether the decoder takes black for white.
    """

    format: str
    files: list[bytes]
    width: int
    height: int
    pixels: int
    orientation: int = UPRIGHT
    scans: int = 1
    inverted: bool = False


def survey(data: bytes) -> Picture:
    """What the file's header and directories say, without decoding.

    Raises UnsupportedMediaType if the file is none of FORMATS or of a layout that is not read, and InvalidImage if
    it is broken.
    """
    kind = _format(data)
    if kind is None:
        raise UnsupportedMediaType(f"{len(data)} bytes came that are none of {', '.join(FORMATS)} nor a .npy tensor")
    try:
        return _SURVEYS.get(kind, _plain)(kind, data)
    except ValueError as error:
        raise InvalidImage(f"the image is broken: {error}") from None


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """An upright 8-bit RGB image.

    Takes the first frame of an animation, turns it upright by EXIF or XMP, drops alpha, converts CMYK, grey and
    palettes as `Image.convert("RGB")` does, and scales 16-bit grey by 1/257. Does not apply colour profiles.

    Args:
        data: the file.
        max_pixels: of the image, width x height.

    Raises InvalidImage, PayloadTooLarge or UnsupportedMediaType.
    """
    try:
        picture = survey(data)
        refuse(picture, max_pixels)
        return turned(_pixels(picture, max_pixels), picture.orientation)
    except RequestError:
        raise
    except MemoryError:
        raise PayloadTooLarge("the image needs more memory than this server has to decode it") from None
    except UnidentifiedImageError:
        raise InvalidImage(f"the image is broken: its header cannot be read in its {len(data)} bytes") from None
    except Exception as error:  # Pillow's decoders raise whatever their parsing trips over
        reason = f"{type(error).__name__} in its {len(data)} bytes"
        raise InvalidImage(f"the image is broken: it is cut off or damaged ({reason})") from None


def refuse(picture: Picture, max_pixels: int) -> None:
    """Raises PayloadTooLarge or InvalidImage for a picture that is larger or takes longer to decode than allowed."""
    check_pixels(picture.width, picture.height, max_pixels)
    if picture.pixels > max_pixels:
        raise PayloadTooLarge(
            f"the image is {picture.width} x {picture.height} pixels, in tiles that together have {picture.pixels}; "
            f"at most {max_pixels} are taken"
        )
    if picture.scans > MAX_SCANS:
        raise InvalidImage(f"the JPEG has {picture.scans} scans; at most {MAX_SCANS} are decoded")
    if picture.scans * picture.pixels > MAX_PASSES * max_pixels:
        raise PayloadTooLarge(
            f"the JPEG has {picture.scans} scans of {picture.width} x {picture.height} pixels; at most "
            f"{MAX_PASSES * max_pixels} pixels are gone over"
        )


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises PayloadTooLarge for more pixels in all, or along one side, than allowed."""
    if width * height > max_pixels:
        raise PayloadTooLarge(f"the image is {width} x {height} pixels as sent; at most {max_pixels} are taken")
    if max(width, height) > MAX_SIDE:
        raise PayloadTooLarge(f"the image is {width} x {height} pixels; at most {MAX_SIDE} of a side are taken")


def _format(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for kind, magic in _MAGIC.items() if data.startswith(magic)), None)


def _pixels(picture: Picture, max_pixels: int) -> Image.Image:
    planes = [_open(picture.format, file, max_pixels) for file in picture.files]
    planes = [_eight_bits(plane, picture.inverted) for plane in planes]
    if len(planes) == 1:
        return _to_rgb(planes[0])
    return Image.merge("RGB" if len(planes) == 3 else "CMYK", [plane.convert("L") for plane in planes]).convert("RGB")


def _open(kind: str, data: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=(kind,))
    check_pixels(image.width, image.height, max_pixels)
    # One block: with several, Pillow copies what a decoder has not consumed again and again.
    image.decodermaxblock = max(len(data), 1)
    image.load()
    return image


def _eight_bits(image: Image.Image, inverted: bool) -> Image.Image:
    return _from_16_bit(image, inverted) if image.mode == "I" or image.mode.startswith("I;16") else image


def _from_16_bit(image: Image.Image, inverted: bool) -> Image.Image:
    """16-bit grey to 8 bits: 65535 becomes 255. (Pillow's own convert clips at 255 instead.)"""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise InvalidImage("the image holds integers beyond 16 bits; send 8 or 16 bits a channel, or a .npy tensor")
    values = 65535 - values if inverted else values
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as directly to RGB, without Pillow's warning
    return image if image.mode == "RGB" else image.convert("RGB")


def _jpeg(kind: str, data: bytes) -> Picture:
    found = jpeg.read(data)
    if len(found.frames) != 1:
        raise InvalidImage(f"the image is broken: a JPEG has one frame header, and this one {len(found.frames)}")
    width, height = found.frames[0]
    turn = orientation(found.exif, found.xmp)
    return Picture(kind, [found.data], width, height, width * height, turn, found.scans)


def _png(kind: str, data: bytes) -> Picture:
    found = png.read(data)
    if found.unknown:
        raise InvalidImage(f"the image is broken: {len(found.unknown)} kinds of chunks that no PNG may have")
    if found.size is None:
        raise InvalidImage(f"the image is broken: its header cannot be read in its {len(data)} bytes")
    width, height = found.size
    return Picture(kind, [found.data], width, height, width * height, orientation(found.exif, found.xmp))


def _webp(kind: str, data: bytes) -> Picture:
    found = webp.read(data)
    size = found.canvas or _size(kind, found.data)
    return Picture(kind, [found.data], *size, size[0] * size[1], orientation(found.exif, found.xmp))


def _tiff(kind: str, data: bytes) -> Picture:
    found = tiff.read(data)
    return Picture(
        kind,
        found.files(),
        found.width,
        found.height,
        found.pixels,
        orientation(data, found.xmp),
        tiff.scans(found),
        found.inverted,
    )


def _plain(kind: str, data: bytes) -> Picture:
    size = _size(kind, data)
    return Picture(kind, [data], *size, size[0] * size[1])


def _size(kind: str, data: bytes) -> tuple[int, int]:
    """Width and height in pixels by the header, as Pillow reads it."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            # Pillow decodes run-length encoded BMPs in Python, run by run, which is slow.
            if kind == "BMP" and image.info.get("compression") in (1, 2):
                raise UnsupportedMediaType(
                    "the BMP is run-length encoded, which is not read; send it plain, or as a PNG"
                )
            return image.size
    except RequestError:
        raise
    except Exception:  # as in decode
        raise InvalidImage(f"the image is broken: its header cannot be read in its {len(data)} bytes") from None


_MAGIC: dict[str, bytes | tuple[bytes, ...]] = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": png.SIGNATURE,
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": b"BM",
    "TIFF": ifd.PREFIXES,
}
_SURVEYS: dict[str, Callable[[str, bytes], Picture]] = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff}
