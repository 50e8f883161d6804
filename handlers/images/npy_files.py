"""Reads .npy files: images that a client has decoded, cropped or normalised itself. Never unpickles."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.images.cropping import Crop, crop
from handlers.images.preprocess import Preprocess
from handlers.protocol.errors import InvalidImage, PayloadTooLarge

NPY_MAGIC = b"\x93NUMPY"
Normalised = NDArray[np.floating]  # (3, size, size), by the client


def is_npy(data: bytes) -> bool:
    """Whether the bytes begin as a .npy file does."""
    return data[: len(NPY_MAGIC)] == NPY_MAGIC


def read_npy(data: bytes, preprocess: Preprocess, max_pixels: int) -> list[Crop | Normalised]:
    """The images of a .npy file, one or several.

    The header is checked against the bytes that came before anything is allocated. A file holds one of:
        float16 or float32, (3, S, S) or (N, 3, S, S): normalised by the client, taken as they are.
        uint8, (S, S, 3) or (N, S, S, 3): crops in RGB, which the server normalises.
        uint8, (H, W, 3) or (N, H, W, 3) of another size: whole RGB images, resized and cropped as image files are.

    Args:
        data: the file.
        preprocess: the archive's settings; S is its size.
        max_pixels: of all images in the file together.

    Raises:
        InvalidImage: the file is broken, of another type or shape, or holds values that fp16 does not.
        PayloadTooLarge: more pixels than max_pixels.
    """
    wanted = _wanted(preprocess.size)
    dtype, shape, start = _header(data, wanted)
    is_image = dtype == np.uint8 and len(shape) in (3, 4) and shape[-1] == 3
    _check_layout(dtype, shape, is_image, preprocess.size, wanted)
    count = math.prod(shape)
    body_bytes = len(data) - start
    if body_bytes != count * dtype.itemsize or count == 0:
        raise InvalidImage(f"a .npy tensor of {shape} has {count * dtype.itemsize} bytes, but {body_bytes} came")
    if count // 3 > max_pixels:
        raise PayloadTooLarge(f"a .npy tensor of {shape} came; at most {max_pixels} pixels are taken")
    tensor = np.frombuffer(data, dtype, count, start).reshape(-1, *shape[-3:])  # (N, H, W, 3) or (N, 3, S, S)
    if is_image:
        return _crops(tensor, preprocess)
    if not _fits_fp16(tensor):
        raise InvalidImage("the .npy tensor holds NaN, infinity, or values beyond those of fp16; normalise it first")
    return list(tensor)


def images_in(data: bytes) -> int:
    """How many images a file holds, by its header: N for a .npy file of N, and 1 for everything else.

    A file that `read_npy` will refuse counts as 1.
    """
    if not is_npy(data):
        return 1
    try:
        dtype, shape, start = _header(data, "")
    except InvalidImage:
        return 1
    is_whole = len(data) - start == math.prod(shape) * dtype.itemsize
    return shape[0] if is_whole and len(shape) == 4 else 1


def _wanted(size: int) -> str:
    return (
        f"float16 or float32, (3, {size}, {size}) or (N, 3, {size}, {size}), normalised; or uint8, (H, W, 3) or "
        "(N, H, W, 3), RGB; in C order"
    )


def _check_layout(dtype: np.dtype[Any], shape: tuple[int, ...], is_image: bool, size: int, wanted: str) -> None:
    is_tensor = dtype in (np.float16, np.float32) and len(shape) in (3, 4) and shape[-3:] == (3, size, size)
    if not is_image and not is_tensor:
        raise InvalidImage(f"a .npy tensor of {_type_name(dtype)} {shape} came; wanted: {wanted}")


def _type_name(dtype: np.dtype[Any]) -> object:
    return "records" if dtype.names else dtype  # the names of records' fields are the client's own


def _crops(images: NDArray[Any], preprocess: Preprocess) -> list[Crop | Normalised]:
    """(N, H, W, 3) uint8 -> one crop per image."""
    if images.shape[1:3] == (preprocess.size, preprocess.size):
        return list(images)
    return [crop(Image.fromarray(image), preprocess) for image in images]


def _header(data: bytes, wanted: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type, shape and offset of the values. Raises InvalidImage."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if max(shape, default=0) >= 2**63:  # Python may refuse to write so many digits into a message
            raise ValueError("a side beyond 63 bits")
        if min(shape, default=0) < 0:
            raise ValueError("a side below zero")
    except Exception:  # NumPy parses the header as Python source, and raises whatever that trips over
        raise InvalidImage(f"a .npy file with a broken header came; wanted: {wanted}") from None
    if fortran:
        raise InvalidImage(f"a .npy tensor of {_type_name(dtype)} {shape}, Fortran order came; wanted: {wanted}")
    return dtype, shape, stream.tell()


def _fits_fp16(tensor: NDArray[Any]) -> bool:
    """Whether all values are finite in fp16."""
    if tensor.dtype == np.float16:  # exponents of all ones, by the bits: five times faster than np.isfinite
        return not ((tensor.view(np.uint16) & 0x7C00) == 0x7C00).any()
    return bool((np.abs(tensor) <= np.finfo(np.float16).max).all())
