"""Encoded images -> uint8 crops -> one normalised batch on the device.

The steps and their order are those of transformers' image processors (`image_utils.load_image`, then resize,
centre crop, rescale, normalise), so a checkpoint sees here what it sees there.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from handlers.errors import (
    EmptyRequest,
    InvalidImage,
    InvalidInput,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)
from handlers.requests import kind_of, names_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MEDIA = (
    "an image (JPEG, PNG, WebP, GIF, BMP or TIFF) or a ready .npy tensor, as the raw body, as multipart parts, "
    'or in base64 as JSON: a string, {"b64": "..."}, a list of those, or {"instances": [...]}'
)
INTERPOLATIONS = {mode.name.lower(): mode for mode in Image.Resampling}
NPY_MAGIC = b"\x93NUMPY"
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
WEBP = (b"RIFF", b"WEBP")  # with four bytes between them
# Decoding a progressive JPEG goes over the whole image once a scan. Encoders write 10 or so; a few kilobytes hold
# thousands, whose decoding takes minutes.
MAX_SCANS = 100
SCAN = b"\xff\xda"

# Pillow's own bomb check raises at twice its limit and only warns below; ours is one limit, asked before decoding.
Image.MAX_IMAGE_PIXELS = None

Crop = NDArray[np.uint8]  # (size, size, 3)
Ready = NDArray[np.floating]  # (3, size, size), normalised by the client


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes what the network was trained on.

    size: side of the square the network sees, in pixels.
    resize: the side that is resized to before the centre crop, in pixels (256 for a 224 crop, say).
    resize_mode: "shortest_edge" keeps the aspect ratio, the shorter side becomes `resize`;
        "square" squashes the image to resize x resize.
    interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming", as in Pillow.
    mean, std: per channel, of values scaled to 0..1.

    Raises ValueError for values that no image can be prepared with.
    """

    size: int
    resize: int
    resize_mode: str = "shortest_edge"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"size {self.size} and resize {self.resize}; wanted: 1 <= size <= resize")
        if self.resize_mode not in ("shortest_edge", "square"):
            raise ValueError(f"resize_mode {self.resize_mode!r}; wanted: shortest_edge or square")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r}; wanted: {', '.join(INTERPOLATIONS)}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}; wanted: three numbers each, std above 0")


def from_base64(value: object) -> bytes:
    """The image bytes in a JSON value: base64, a data URL, or `{"b64": base64}`."""
    if isinstance(value, dict):
        if value.keys() != {"b64"}:
            raise InvalidInput(f'an object with keys {names_of(value)} came; wanted: {{"b64": "..."}}')
        value = value["b64"]
    if not isinstance(value, str):
        raise InvalidInput(f"{kind_of(value)} came where an image belongs; wanted: {MEDIA}")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"a string of {len(value)} characters came that is not base64") from None
    if not data:
        raise EmptyRequest("an empty string came where an image belongs")
    return data


def file_of(payload: object) -> bytes:
    """What a client sent as one input, as bytes. Raises EmptyRequest or InvalidInput where it is JSON and no file."""
    return bytes(payload) if isinstance(payload, (bytes, bytearray)) else from_base64(payload)


def refuse_together(files: Sequence[bytes], max_pixels: int) -> None:
    """Raises PayloadTooLarge where a request's images, each small enough, take too long together."""
    if len(files) > 1 and (pixels := sum(map(_pixels_of, files))) > max_pixels:
        raise PayloadTooLarge(
            f"the request's {len(files)} images have {pixels} pixels together; at most {max_pixels} are decoded for "
            "one request; send fewer at a time, or smaller ones"
        )


def _pixels_of(data: bytes) -> int:
    """By the header; 0 for what has none, which is for `prepare` to refuse."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # as in decode
        return 0


def prepare(data: bytes, preprocess: Preprocess, max_pixels: int) -> list[Crop | Ready]:
    """One input's bytes as what the batch takes: one crop for an image, one or more tensors for a .npy file.

    Raises InvalidImage, PayloadTooLarge or UnsupportedMediaType.
    """
    if data[: len(NPY_MAGIC)] == NPY_MAGIC:
        return read_tensor(data, preprocess.size, max_pixels)
    image = decode(data, max_pixels)
    # A strip 1 pixel wide passes the check before decoding and would grow past every limit here.
    _check_pixels(*resized_size(image.width, image.height, preprocess), max_pixels, "once resized")
    return [crop(image, preprocess)]


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """An upright 8-bit RGB image.

    The first frame of an animation; EXIF orientation applied; alpha dropped and CMYK, grey and palettes
    converted as `Image.convert("RGB")` does; 16-bit grey scaled by 1/257. Colour profiles are not applied.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.width, image.height, max_pixels)
            _refuse_slow(image, data)
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        if data.startswith(MAGIC) or (data[:4], data[8:12]) == WEBP:
            raise InvalidImage(f"the image is broken: its header cannot be read in its {len(data)} bytes") from None
        raise UnsupportedMediaType(
            f"{len(data)} bytes came that are none of {', '.join(FORMATS)} nor a .npy tensor"
        ) from None
    except RequestError:
        raise
    except MemoryError:
        raise PayloadTooLarge("the image needs more memory than this server has to decode it") from None
    except Exception as error:  # Pillow's decoders raise whatever their parsing trips over
        raise InvalidImage(f"the image is broken: {type(error).__name__} in its {len(data)} bytes") from None


def _check_pixels(width: int, height: int, max_pixels: int, when: str = "as sent") -> None:
    if width * height > max_pixels:
        raise PayloadTooLarge(f"the image is {width} x {height} pixels {when}; at most {max_pixels} are taken")


def _refuse_slow(image: Image.Image, data: bytes) -> None:
    """What takes far longer to decode than its pixels and its bytes let expect."""
    compression = image.info.get("compression")
    if image.format == "BMP" and compression in (1, 2):  # Pillow decodes these in Python, pixel run by pixel run
        raise UnsupportedMediaType("the BMP is run-length encoded, which is not read; send it plain, or as a PNG")
    holds_jpeg = image.format in ("JPEG", "MPO") or compression in ("jpeg", "tiff_jpeg")
    if holds_jpeg and data.count(SCAN) > MAX_SCANS:
        raise InvalidImage(f"the JPEG has {data.count(SCAN)} scans; at most {MAX_SCANS} are decoded")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _from_16_bit(image)
    elif image.mode == "F":
        raise InvalidImage("the image holds 32-bit floats, whose range no file says; send 8 or 16 bits, or a .npy")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as straight to RGB, without Pillow's warning
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits: 65535 becomes 255. (Pillow's own convert clips at 255 instead.)"""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise InvalidImage("the image holds integers beyond 16 bits; send 8 or 16 bits a channel, or a .npy tensor")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def crop(image: Image.Image, preprocess: Preprocess) -> Crop:
    """Resize and centre-crop an RGB image to (size, size, 3) uint8."""
    size = preprocess.size
    resized = image.resize(
        resized_size(image.width, image.height, preprocess), INTERPOLATIONS[preprocess.interpolation]
    )
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def blank(preprocess: Preprocess) -> Crop:
    """A black crop."""
    return np.zeros((preprocess.size, preprocess.size, 3), np.uint8)


def resized_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Width and height after the resize, in pixels, rounded down as transformers and torchvision do."""
    edge = preprocess.resize
    if preprocess.resize_mode == "square":
        return edge, edge
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def read_tensor(data: bytes, size: int, max_pixels: int) -> list[Crop | Ready]:
    """A .npy file of one normalised image (3, size, size), or of several (N, 3, size, size), float16 or float32.

    The header is checked against the bytes that came before anything is allocated. Never unpickles.
    """
    wanted = f"float16 or float32, (3, {size}, {size}) or (N, 3, {size}, {size}), normalised, C order"
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if max(map(abs, shape), default=0) >= 2**63:  # more digits, maybe, than Python writes into a message
            raise ValueError("a side beyond 63 bits")
    except Exception:  # NumPy parses the header as Python source, and raises whatever that trips over
        raise InvalidImage(f"a .npy file with a broken header came; wanted: {wanted}") from None
    if dtype not in (np.float16, np.float32) or fortran or shape[-3:] != (3, size, size) or len(shape) not in (3, 4):
        order = ", Fortran order" if fortran else ""
        kind = "records" if dtype.names else dtype  # whose field names are the client's own
        raise InvalidImage(f"a .npy tensor of {kind} {shape}{order} came; wanted: {wanted}")
    count = math.prod(shape)
    body = len(data) - stream.tell()
    if body != count * dtype.itemsize or count == 0:
        raise InvalidImage(f"a .npy tensor of {shape} has {count * dtype.itemsize} bytes, but {body} came")
    if count // 3 > max_pixels:
        raise PayloadTooLarge(f"a .npy tensor of {shape} came; at most {max_pixels} pixels are taken")
    tensor = np.frombuffer(data, dtype, count, stream.tell()).reshape(-1, 3, size, size)
    if not (np.abs(tensor) <= np.finfo(np.float16).max).all():
        raise InvalidImage("the .npy tensor holds NaN, infinity, or values beyond those of fp16; normalise it first")
    return list(tensor)


class Batcher:
    """Crops and ready tensors -> (N, 3, size, size) on the device, channels_last, normalised, in its precision."""

    def __init__(self, preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = preprocess.size, device, dtype
        # Folded for values 0..255, so that one multiply and one subtract do rescale and normalise.
        std = torch.tensor(preprocess.std, dtype=torch.float32, device=device)
        mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device)
        self.scale = (1 / (255 * std)).view(1, 3, 1, 1)
        self.shift = (mean / std).view(1, 3, 1, 1)

    def __call__(self, inputs: Sequence[Crop | Ready]) -> torch.Tensor:
        crops = [place for place, item in enumerate(inputs) if item.dtype == np.uint8]
        ready = [place for place, item in enumerate(inputs) if item.dtype != np.uint8]
        if not ready:
            return self._normalise(np.stack(inputs))
        batch = torch.empty(
            (len(inputs), 3, self.size, self.size),
            dtype=self.dtype,
            device=self.device,
            memory_format=torch.channels_last,
        )
        batch[ready] = self._upload(np.stack([inputs[place].astype(np.float32) for place in ready])).to(self.dtype)
        if crops:
            batch[crops] = self._normalise(np.stack([inputs[place] for place in crops]))
        return batch

    def _normalise(self, crops: NDArray[Any]) -> torch.Tensor:
        pixels = self._upload(crops).permute(0, 3, 1, 2)  # (N, 3, H, W) uint8, channels_last in memory
        return (pixels.float() * self.scale - self.shift).to(self.dtype)

    def _upload(self, array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
