"""JPEGs -> normalised crops without the CPU: decoded by the GPU's JPEG engines, resized and cropped by one kernel.

nvImageCodec decodes (docs.nvidia.com/cuda/nvimagecodec; optional to install). handlers.kernels.resize does the rest.
Both give the pixels of the CPU's way, within MAX_DIFFERENCE levels of 255; that is checked when the model loads.
What the engines cannot decode, or might read differently, goes the CPU's way, picture by picture.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from handlers.images import formats, jpeg_headers, preparation
from handlers.images.jpeg_headers import Header
from handlers.images.preparation import DeviceCrop, Preprocess
from handlers.serving.isolation import exit_if_gpu_lost

logger = logging.getLogger(__name__)

INTERPOLATIONS = ("bilinear", "bicubic")  # what handlers.kernels.resize computes
MAX_PIXELS = 16 << 20  # of one picture; larger ones would hold memory that engines need
MAX_PIXELS_TOGETHER = 128 << 20  # decoded at once: 400 MB
MAX_REDUCTION = 16  # a side that shrinks more is read with more weights than pay here
MAX_DIFFERENCE = 3  # levels of 255 between a pixel of the GPU's and the CPU's way; more is another picture


class Jpeg(NamedTuple):
    """A file that the GPU may decode."""

    data: bytes
    header: Header


def objection(preprocess: Preprocess, device: torch.device) -> str | None:
    """Why JPEGs cannot be decoded on this device, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, and the device is {device}"
    if preprocess.interpolation not in INTERPOLATIONS:
        return (
            f"the GPU resizes {' and '.join(INTERPOLATIONS)}, and the checkpoint asks for {preprocess.interpolation}"
        )
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which torch for CUDA on Linux brings"
    try:
        found = importlib.util.find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        found = None
    if found is None:
        return "nvImageCodec is not installed: pip install nvidia-nvimgcodec-cu13 nvidia-nvjpeg (cu12: -cu12)"
    return None


class GpuDecoder:
    """Decodes, resizes, crops and normalises JPEGs on one GPU.

    Raises RuntimeError if the GPU has no JPEG engine (consumer cards have none), or if its pixels differ from the
    CPU's by more than MAX_DIFFERENCE.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> None:
        from nvidia import nvimgcodec

        from handlers.kernels import resize

        self.codec, self.kernels = nvimgcodec, resize
        self.preprocess, self.device, self.dtype = preprocess, device, dtype
        self.scale, self.shift = preparation.folded(preprocess, device)
        # GPU_ONLY and HYBRID would take what the engines cannot: by other arithmetic, and several times slower.
        engines = nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)
        self.decoder: Any = nvimgcodec.Decoder(device_id=device.index or 0, max_num_cpu_threads=1, backends=[engines])
        self.parameters = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB, allow_any_depth=False
        )
        self.held: list[Any] = []
        self.difference = self._largest_difference()
        if self.difference > MAX_DIFFERENCE:
            raise RuntimeError(f"its pixels differ from the CPU's by {self.difference} of 255")
        self([jpeg for data in _trial_files() if (jpeg := self.accept(data, MAX_PIXELS))])  # compiles for this dtype

    @property
    def details(self) -> dict[str, object]:
        """How pictures are decoded, for the model's description."""
        version = importlib.metadata.version(f"nvidia-nvimgcodec-cu{self.codec.__cuda_version__ // 1000}")
        return {
            "jpeg": f"nvImageCodec {version}, the GPU's JPEG engines",
            "largestDifferenceOf255": self.difference,
            "others": "Pillow",
        }

    def accept(self, data: bytes, max_pixels: int) -> Jpeg | None:
        """The file with its header, if it is a picture for the GPU; None sends it the CPU's way."""
        header = jpeg_headers.read(data)
        if header is None:
            return None
        short, long = sorted((header.width, header.height))
        fits = short * long <= min(max_pixels, MAX_PIXELS) and long <= preparation.MAX_ELONGATION * short
        return Jpeg(data, header) if fits and long <= MAX_REDUCTION * self.preprocess.resize else None

    @torch.inference_mode()
    def __call__(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        """One crop per file, in order; None for a file that the engines did not decode."""
        crops: list[DeviceCrop | None] = []
        for part in _parts(jpegs):
            found = self._attempt(part)
            if None in found and len(part) > 1:
                # One file that cannot be decoded may take others with it, so each is decoded by itself.
                found = [crop for jpeg in part for crop in self._attempt([jpeg])]
            crops += found
        return crops

    def _attempt(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        """As _decode; an error decodes none of them. Does not return if the GPU is lost."""
        try:
            return self._decode(jpegs)
        except Exception as error:  # memory that is short, or whatever the library raises for a file
            exit_if_gpu_lost()
            logger.warning("%d JPEGs were not decoded on the GPU: %s", len(jpegs), type(error).__name__)
            return [None] * len(jpegs)

    def _decode(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        stream = torch.cuda.current_stream(self.device)
        if self.held:  # the kernels that read the pictures before these must have ended before their memory is reused
            stream.synchronize()
            self.held = []
        streams = [self.codec.CodeStream(jpeg.data) for jpeg in jpegs]
        decoded = self.decoder.decode(streams, params=self.parameters, cuda_stream=stream.cuda_stream)
        self.held = decoded  # the kernels below still read them when this returns
        described = [
            self._picture(image, jpeg.header)
            for image, jpeg in zip(decoded, jpegs, strict=True)
            if _is_right(image, jpeg.header)
        ]
        size = self.preprocess.size
        batch = torch.empty((len(described), size, size, 3), dtype=self.dtype, device=self.device)
        if described:
            self.kernels.crops(described, self.preprocess.interpolation, self.scale, self.shift, batch)
        rows = iter(range(len(described)))
        return [
            DeviceCrop(batch, next(rows)) if _is_right(image, jpeg.header) else None
            for image, jpeg in zip(decoded, jpegs, strict=True)
        ]

    def _picture(self, image: Any, header: Header) -> Any:
        width, height = header.width, header.height
        upright = (width, height) if header.orientation < 5 else (height, width)
        resized = preparation.resized_size(*upright, self.preprocess)
        left, top = (preparation.crop_start(side, self.preprocess) for side in resized)
        address = image.__cuda_array_interface__["data"][0]
        strides = image.strides
        return self.kernels.Picture(address, strides, width, height, resized, (left, top), header.orientation)

    def _largest_difference(self) -> int:
        """Between the two ways, over pictures of every subsampling that the GPU may decode, in levels of 255."""
        exact = GpuDecoder.__new__(GpuDecoder)
        exact.__dict__ |= self.__dict__ | {"dtype": torch.float32}
        exact.scale, exact.shift = torch.ones(3, device=self.device), torch.zeros(3, device=self.device)
        files = list(_trial_files())
        accepted = [self.accept(data, MAX_PIXELS) for data in files]
        crops = exact([jpeg for jpeg in accepted if jpeg is not None])
        if len(crops) != len(files) or None in crops:
            raise RuntimeError("it did not decode a JPEG that it should")
        differences = [
            np.abs(
                crop.batch[crop.row].cpu().numpy()
                - preparation.crop(formats.decode(data, MAX_PIXELS), self.preprocess)
            )
            for crop, data in zip(crops, files, strict=True)
            if crop is not None
        ]
        return int(max(difference.max() for difference in differences))


def load(
    asked: str, preprocess: Preprocess, device: torch.device, dtype: torch.dtype
) -> tuple[GpuDecoder | None, str]:
    """The decoder for "auto", "gpu" or "cpu", and why there is none if there is none.

    Raises ValueError if "gpu" is asked for and cannot be had.
    """
    if asked == "cpu":
        return None, "asked for"
    why = objection(preprocess, device)
    if why is None:
        try:
            return GpuDecoder(preprocess, device, dtype), ""
        except Exception as error:  # the library's own, which are many
            why = f"the GPU does not decode JPEGs as the CPU does: {error}"
    if asked == "gpu":
        raise ValueError(f"decoder: gpu is asked for, and {why}; decoder: auto would use the CPU")
    if device.type == "cuda":
        logger.warning("JPEGs are decoded on the CPU, which is several times slower: %s", why)
    return None, why


def _is_right(image: Any, header: Header) -> bool:
    return image is not None and tuple(image.shape) == (header.height, header.width, 3)


def _parts(jpegs: Sequence[Jpeg]) -> Iterator[Sequence[Jpeg]]:
    """Cut where the pixels together would pass MAX_PIXELS_TOGETHER."""
    first = pixels = 0
    for index, (_, header) in enumerate(jpegs):
        pixels += header.width * header.height
        if pixels > MAX_PIXELS_TOGETHER:
            yield jpegs[first:index]
            first, pixels = index, header.width * header.height
    if jpegs:
        yield jpegs[first:]


def _trial_files() -> Iterator[bytes]:
    """JPEGs that tell decoders apart: edges of colour, odd sizes, every subsampling, grey, a turned one."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((333, 251), Image.Resampling.BICUBIC)
    picture.paste((255, 0, 0), (40, 30, 90, 60))
    turned = Image.Exif()
    turned[0x0112] = 6
    for options in ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"exif": turned.tobytes()}):
        yield _jpeg(picture, **options)
    yield _jpeg(picture.convert("L"))


def _jpeg(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()
