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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from handlers.images import formats
from handlers.images.formats import decode as decode
from handlers.protocol import charsets
from handlers.protocol.errors import EmptyRequest, InvalidImage, InvalidInput, PayloadTooLarge, RequestError
from handlers.protocol.wording import kind_of, names_of

MEDIA = (
    "an image (JPEG, PNG, WebP, GIF, BMP or TIFF) or a ready .npy tensor, as the raw body, as multipart parts, "
    'or in base64 as JSON: a string, {"b64": "..."}, a list of those, or {"instances": [...]}'
)
INTERPOLATIONS = {mode.name.lower(): mode for mode in Image.Resampling}
# Images whose longer side is so many times the shorter one are resized whole, with the very pixels of the libraries.
# Longer strips hold more pixels than anyone looks at.
MAX_ELONGATION = 8
WIDEST_FILTER = 3  # Lanczos's support, in pixels of the coarser image
NPY_MAGIC = b"\x93NUMPY"
DTYPES = {np.uint8: torch.uint8, np.float16: torch.float16, np.float32: torch.float32}
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
    crop_rounding: where the crop begins if what is cut off is an odd number of pixels: half of it rounded "down", as
        transformers' image processors do, or to the "even" number beside it, as torchvision's and timm's do. An
        archive that does not say it is as it was: "down".

    Raises ValueError for values that no image can be prepared with.
    """

    size: int
    resize: int
    resize_mode: str = "shortest_edge"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_rounding: str = "down"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"size {self.size} and resize {self.resize}; wanted: 1 <= size <= resize")
        if self.resize_mode not in ("shortest_edge", "square"):
            raise ValueError(f"resize_mode {self.resize_mode!r}; wanted: shortest_edge or square")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r}; wanted: {', '.join(INTERPOLATIONS)}")
        if self.crop_rounding not in ("down", "even"):
            raise ValueError(f"crop_rounding {self.crop_rounding!r}; wanted: down or even")
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
    charsets.refuse_compressed(data, "the image")
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
    """That decoding goes over, by the header; 0 for what has none, which is for `prepare` to refuse."""
    try:
        picture = formats.survey(data)
    except RequestError:
        return 0
    return picture.pixels * picture.scans if picture.scans > formats.MAX_PASSES else picture.pixels


def prepare(data: bytes, preprocess: Preprocess, max_pixels: int) -> list[Crop | Ready]:
    """One input's bytes as what the batch takes: one crop for an image, one or more tensors for a .npy file.

    Raises InvalidImage, PayloadTooLarge or UnsupportedMediaType.
    """
    if data[: len(NPY_MAGIC)] == NPY_MAGIC:
        return read_tensor(data, preprocess, max_pixels)
    return [crop(decode(data, max_pixels), preprocess)]


def crop(image: Image.Image, preprocess: Preprocess) -> Crop:
    """Resize and centre-crop an RGB image to (size, size, 3) uint8."""
    size = preprocess.size
    width, height = resized_size(image.width, image.height, preprocess)
    left, top = crop_start(width, preprocess), crop_start(height, preprocess)
    if width * height > MAX_ELONGATION * preprocess.resize**2:
        return _crop_of_strip(image, preprocess, (width, height), (left, top))
    resized = image.resize((width, height), INTERPOLATIONS[preprocess.interpolation])
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _crop_of_strip(
    image: Image.Image, preprocess: Preprocess, resized: tuple[int, int], start: tuple[int, int]
) -> Crop:
    """Resize only what is cropped; resized as a whole, 762 pixels in a row would become 50 million.

    A value may be one off that of the whole: Pillow takes the box in 32-bit floats, which is also why the image is
    cut around it first.
    """
    size, interpolation = preprocess.size, INTERPOLATIONS[preprocess.interpolation]
    left, right, x0, x1 = _span(image.width, resized[0], start[0], size)
    top, bottom, y0, y1 = _span(image.height, resized[1], start[1], size)
    part = image.crop((left, top, right, bottom))
    return np.asarray(part.resize((size, size), interpolation, box=(x0, y0, x1, y1)))


def _span(side: int, resized: int, start: int, size: int) -> tuple[int, int, float, float]:
    """(first and last pixel that the crop is made of, where it begins and ends between them), along one side."""
    scale = side / resized
    begin, end = scale * start, scale * (start + size)
    margin = math.ceil(WIDEST_FILTER * max(scale, 1)) + 1
    first, last = max(math.floor(begin) - margin, 0), min(math.ceil(end) + margin, side)
    return first, last, begin - first, min(end - first, last - first)


def crop_start(side: int, preprocess: Preprocess) -> int:
    """Where the crop begins, in pixels from the left or the top of a resized image with this side."""
    margin = side - preprocess.size
    # Python rounds halves to even, and torchvision.transforms.CenterCrop leaves it to Python.
    return round(margin / 2) if preprocess.crop_rounding == "even" else margin // 2


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


def read_tensor(data: bytes, preprocess: Preprocess, max_pixels: int) -> list[Crop | Ready]:
    """Return the images of a .npy file, one or several.

    float16 or float32, (3, S, S) or (N, 3, S, S): normalised by the client, taken as they are.
    uint8, (S, S, 3) or (N, S, S, 3): crops in RGB, which are normalised here.
    uint8, (H, W, 3) or (N, H, W, 3) of another height or width: whole RGB images, resized and cropped as files are.
    A file of N = 1 is one image, and is answered as a file without the first axis: not by a list.

    The header is checked against the bytes that came before anything is allocated. Never unpickles.
    Raises InvalidImage or PayloadTooLarge.
    """
    size = preprocess.size
    wanted = (
        f"float16 or float32, (3, {size}, {size}) or (N, 3, {size}, {size}), normalised; or uint8, (H, W, 3) or "
        "(N, H, W, 3), RGB; in C order"
    )
    dtype, shape, start = _npy_header(data, wanted)
    is_image = dtype == np.uint8 and len(shape) in (3, 4) and shape[-1] == 3
    if not is_image and (
        dtype not in (np.float16, np.float32) or len(shape) not in (3, 4) or shape[-3:] != (3, size, size)
    ):
        kind = "records" if dtype.names else dtype  # whose field names are the client's own
        raise InvalidImage(f"a .npy tensor of {kind} {shape} came; wanted: {wanted}")
    count = math.prod(shape)
    body = len(data) - start
    if count == 0:
        raise InvalidImage(f"a .npy tensor of {shape} came, which holds no image; wanted: {wanted}")
    if body != count * dtype.itemsize:
        raise InvalidImage(f"a .npy tensor of {shape} has {count * dtype.itemsize} bytes, but {body} came")
    if count // 3 > max_pixels:
        raise PayloadTooLarge(f"a .npy tensor of {shape} came; at most {max_pixels} pixels are taken")
    tensor = np.frombuffer(data, dtype, count, start).reshape(-1, *shape[-3:])
    if is_image:
        return (
            list(tensor)
            if shape[-3:-1] == (size, size)
            else [crop(Image.fromarray(one), preprocess) for one in tensor]
        )
    if not _fits_fp16(tensor):
        raise InvalidImage("the .npy tensor holds NaN, infinity, or values beyond those of fp16; normalise it first")
    return list(tensor)


def refuse_stack_in_list(counts: Sequence[int]) -> None:
    """Raises InvalidInput if one of several files holds several images: nobody could tell whose answer is whose.

    counts: images in each file of a request.
    """
    if len(counts) > 1 and max(counts) > 1:
        raise InvalidInput(
            f"one of {len(counts)} inputs is a .npy file of {max(counts)} images; send such a file alone, or images "
            "one by one"
        )


def inputs_in(data: bytes) -> int:
    """How many images a file holds, by its header: N for a .npy file of N, and 1 for everything else.

    A file that `prepare` will refuse counts as 1.
    """
    if data[: len(NPY_MAGIC)] != NPY_MAGIC:
        return 1
    try:
        dtype, shape, start = _npy_header(data, "")
    except InvalidImage:
        return 1
    is_whole = len(data) - start == math.prod(shape) * dtype.itemsize
    return shape[0] if is_whole and len(shape) == 4 else 1


def _npy_header(data: bytes, wanted: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type, shape and offset of the values. Raises InvalidImage."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if max(shape, default=0) >= 2**63:  # more digits, maybe, than Python writes into a message
            raise ValueError("a side beyond 63 bits")
        if min(shape, default=0) < 0:
            raise ValueError("a side below zero")
    except Exception:  # NumPy parses the header as Python source, and raises whatever that trips over
        raise InvalidImage(f"a .npy file with a broken header came; wanted: {wanted}") from None
    if fortran:
        kind = "records" if dtype.names else dtype
        raise InvalidImage(f"a .npy tensor of {kind} {shape}, Fortran order came; wanted: {wanted}")
    return dtype, shape, stream.tell()


def _fits_fp16(tensor: NDArray[Any]) -> bool:
    """Whether all values are finite in fp16."""
    if tensor.dtype == np.float16:  # exponents of all ones, by the bits: five times faster than np.isfinite
        return not ((tensor.view(np.uint16) & 0x7C00) == 0x7C00).any()
    return bool((np.abs(tensor) <= np.finfo(np.float16).max).all())


class DeviceCrop(NamedTuple):
    """A crop that lies on the GPU, normalised: one row of `batch`, (N, S, S, 3) in the network's dtype."""

    batch: torch.Tensor
    row: int


def folded(preprocess: Preprocess, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rescaling and normalising in one: a value v of 0..255 becomes v * scale - shift. Both are (3,) fp32."""
    std = torch.tensor(preprocess.std, dtype=torch.float32, device=device)
    mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device)
    return 1 / (255 * std), mean / std


class Batcher:
    """Turns crops and ready tensors into a normalised batch: (N, 3, S, S), channels_last, in the network's dtype."""

    def __init__(self, preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = preprocess.size, device, dtype
        self.scale, self.shift = folded(preprocess, device)

    def __call__(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Upload and normalise what is not on the device yet. Crops that lie there in a row are not even copied.

        inputs: each a Crop, a Ready or a DeviceCrop.
        """
        found = _neighbours(inputs)
        if found is not None:
            return found.permute(0, 3, 1, 2)
        batch = torch.empty((len(inputs), self.size, self.size, 3), dtype=self.dtype, device=self.device)
        on_device, crops, ready = _sorted_by_kind(inputs)
        if crops:
            _put(batch, crops, self._normalise(self._upload([inputs[index] for index in crops])))
        for dtype in (np.float16, np.float32):
            if indices := [index for index in ready if inputs[index].dtype == dtype]:
                _put(batch, indices, self._upload([inputs[index] for index in indices]).permute(0, 2, 3, 1))
        if on_device:
            _put(batch, on_device, torch.stack([inputs[index].batch[inputs[index].row] for index in on_device]))
        return batch.permute(0, 3, 1, 2)

    def _normalise(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, S, S, 3) uint8 -> the same, normalised, in fp32."""
        return crops.float().mul_(self.scale).sub_(self.shift)

    def _upload(self, arrays: Sequence[Any]) -> torch.Tensor:
        """Arrays of one shape and type as one tensor on the device: copied once on the host, into pinned memory."""
        shape = (len(arrays), *arrays[0].shape)
        pinned = self.device.type == "cuda"
        staged = torch.empty(shape, dtype=DTYPES[arrays[0].dtype.type], pin_memory=pinned)
        np.stack(arrays, out=staged.numpy())
        return staged.to(self.device, non_blocking=True)


def _neighbours(inputs: Sequence[Any]) -> torch.Tensor | None:
    """Crops that lie on the device one behind the other, (N, S, S, 3); None for anything else."""
    first = inputs[0]
    if not isinstance(first, DeviceCrop):
        return None
    for offset, item in enumerate(inputs):
        if not isinstance(item, DeviceCrop) or item.batch is not first.batch or item.row != first.row + offset:
            return None
    return first.batch[first.row : first.row + len(inputs)]


def _sorted_by_kind(inputs: Sequence[Any]) -> tuple[list[int], list[int], list[int]]:
    """Indices of crops on the device, of crops, and of ready tensors."""
    kinds: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, item in enumerate(inputs):
        kinds[0 if isinstance(item, DeviceCrop) else 1 if item.dtype == np.uint8 else 2].append(index)
    return kinds


def _put(batch: torch.Tensor, indices: Sequence[int], values: torch.Tensor) -> None:
    """Write rows, converted to the batch's type."""
    if len(indices) == len(batch):
        batch.copy_(values)
    else:
        batch[torch.tensor(indices, device=batch.device)] = values.to(batch.dtype)
