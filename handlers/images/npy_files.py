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
Normalised = NDArray[np.floating]  # (3, height, width), by the client, in the network's order of channels


def is_npy(data: bytes) -> bool:
    """Whether the bytes begin as a .npy file does."""
    return data[: len(NPY_MAGIC)] == NPY_MAGIC


def read_npy(data: bytes, preprocess: Preprocess, max_pixels: int, *, exact: bool = True) -> list[Crop | Normalised]:
    """The images of a .npy file, one or several, uint8 ones as crops.

    uint8 images of the crop's size are crops already; those of other sizes are whole images.
    A file of N = 1 is one image, and is answered as a file without the first axis: not by a list.

    Args:
        data: the file.
        preprocess: the archive's settings.
        max_pixels: of all images in the file together.
        exact: as `crop` takes it.

    Raises InvalidImage or PayloadTooLarge, as `read_arrays`.
    """
    images = read_arrays(data, preprocess.shape, max_pixels)
    if images.dtype != np.uint8 or images.shape[1:3] == preprocess.shape:
        return list(images)
    return [crop(Image.fromarray(image), preprocess, exact=exact) for image in images]


def read_arrays(data: bytes, network_size: tuple[int, int] | None, max_pixels: int) -> NDArray[Any]:
    """The images of a .npy file, as they came.

    The header is checked against the bytes that came before anything is allocated. A file holds one of:
        float16 or float32, (3, S, T) or (N, 3, S, T): normalised by the client.
        uint8, (H, W, 3) or (N, H, W, 3): images in RGB.

    Args:
        data: the file.
        network_size: S and T, height and width of the network's images; None if it takes none from clients.
        max_pixels: of all images in the file together.

    Returns:
        (N, 3, S, T) float16 or float32, or (N, H, W, 3) uint8.

    Raises:
        InvalidImage: the file is broken, of another type or shape, or holds values that fp16 does not.
        PayloadTooLarge: more pixels than max_pixels.
    """
    wanted = _wanted(network_size)
    dtype, shape, start = _header(data, wanted)
    is_image = dtype == np.uint8 and len(shape) in (3, 4) and shape[-1] == 3
    if not is_image and not _is_normalised(dtype, shape, network_size):
        raise InvalidImage(f"a .npy tensor of {_type_name(dtype)} {shape} came; wanted: {wanted}")
    count = math.prod(shape)
    if count == 0:
        raise InvalidImage(f"a .npy tensor of {shape} came, which holds no image; wanted: {wanted}")
    body_bytes = len(data) - start
    if body_bytes != count * dtype.itemsize:
        raise InvalidImage(f"a .npy tensor of {shape} has {count * dtype.itemsize} bytes, but {body_bytes} came")
    if count // 3 > max_pixels:
        raise PayloadTooLarge(f"a .npy tensor of {shape} came; at most {max_pixels} pixels are taken")
    images = np.frombuffer(data, dtype, count, start).reshape(-1, *shape[-3:])
    if not is_image and not _fits_fp16(images):
        raise InvalidImage("the .npy tensor holds NaN, infinity, or values beyond those of fp16; normalise it first")
    return images


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


def _wanted(network_size: tuple[int, int] | None) -> str:
    if network_size is None:
        return "uint8, (H, W, 3) or (N, H, W, 3), RGB; in C order"
    height, width = network_size
    return (
        f"float16 or float32, (3, {height}, {width}) or (N, 3, {height}, {width}), normalised; or uint8, "
        "(H, W, 3) or (N, H, W, 3), RGB; in C order"
    )


def _is_normalised(dtype: np.dtype[Any], shape: tuple[int, ...], network_size: tuple[int, int] | None) -> bool:
    wanted = network_size is not None and (3, *network_size)
    return dtype in (np.float16, np.float32) and len(shape) in (3, 4) and shape[-3:] == wanted


def _type_name(dtype: np.dtype[Any]) -> object:
    return "records" if dtype.names else dtype  # the names of records' fields are the client's own


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
