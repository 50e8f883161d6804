"""JPEGs -> normalised crops on the GPU: its JPEG engines decode, one kernel resizes, crops and normalises.

nvImageCodec drives the engines (docs.nvidia.com/cuda/nvimagecodec; optional to install). The kernel is
handlers.kernels.resize. The pixels are Pillow's within MAX_DIFFERENCE levels of 255, which is checked when the model
loads. Pillow decodes each file that the engines cannot decode, or might read differently.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from handlers.images import formats, jpeg_headers
from handlers.images.batching import DeviceCrop, scale_and_shift
from handlers.images.cropping import crop
from handlers.images.geometry import MAX_ELONGATION, placement
from handlers.images.jpeg_headers import Header
from handlers.images.preprocess import Preprocess
from handlers.serving.isolation import exit_if_gpu_lost

logger = logging.getLogger(__name__)

INTERPOLATIONS = ("bilinear", "bicubic")  # what handlers.kernels.resize computes
MAX_PIXELS = 16 << 20  # of one picture; larger ones would hold memory that engines need
MAX_PIXELS_TOGETHER = 128 << 20  # of pictures that are decoded at once: 400 MB
MAX_REDUCTION = 16  # a side that shrinks more needs so many weights per pixel that the CPU is faster
MAX_DIFFERENCE = 3  # levels of 255 between the GPU's and the CPU's value of a pixel


class Jpeg(NamedTuple):
    """A file that the GPU may decode, with its header."""

    data: bytes
    header: Header


def why_unavailable(preprocess: Preprocess, device: torch.device) -> str | None:
    """Why JPEGs cannot be decoded on this device, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, and the device is {device}"
    if preprocess.processor:
        return f"transformers' {preprocess.processor} makes the network's input, on the CPU"
    if not preprocess.square_size or preprocess.resize_width or preprocess.channel_order != "rgb":
        return "the GPU's kernel makes square crops in RGB, and the checkpoint asks for others"
    if preprocess.interpolation not in INTERPOLATIONS:
        return (
            f"the GPU resizes {' and '.join(INTERPOLATIONS)}, and the checkpoint asks for {preprocess.interpolation}"
        )
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which torch for CUDA on Linux brings"
    try:
        found = importlib.util.find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:  # the parent package, nvidia, is missing too
        found = None
    if found is None:
        return "nvImageCodec is not installed: pip install nvidia-nvimgcodec-cu13 nvidia-nvjpeg (cu12: -cu12)"
    return None


class GpuDecoder:
    """Decodes, resizes, crops and normalises JPEGs on one GPU.

    Args:
        preprocess: the archive's settings.
        device: the GPU.
        dtype: of the crops: the network's.

    Raises RuntimeError if the GPU has no JPEG engine (consumer cards have none), or if its pixels differ from the
    CPU's by more than MAX_DIFFERENCE.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> None:
        from nvidia import nvimgcodec

        from handlers.kernels import resize

        self.codec, self.kernels = nvimgcodec, resize
        self.preprocess, self.device, self.dtype = preprocess, device, dtype
        self.scale, self.shift = scale_and_shift(preprocess, device)
        # GPU_ONLY and HYBRID also decode what the engines cannot, by other arithmetic and several times slower.
        engines = nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)
        self.decoder: Any = nvimgcodec.Decoder(device_id=device.index or 0, max_num_cpu_threads=1, backends=[engines])
        self.parameters = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB, allow_any_depth=False
        )
        self.pending: list[Any] = []
        self.difference = self._largest_difference()
        if self.difference > MAX_DIFFERENCE:
            raise RuntimeError(f"its pixels differ from the CPU's by {self.difference} of 255")
        self([jpeg for data in _test_files() if (jpeg := self.accept(data, MAX_PIXELS))])  # compiles for this dtype

    @property
    def details(self) -> dict[str, object]:
        """How files are decoded, for the model's description."""
        version = importlib.metadata.version(f"nvidia-nvimgcodec-cu{self.codec.__cuda_version__ // 1000}")
        return {
            "jpeg": f"nvImageCodec {version}, the GPU's JPEG engines",
            "largestDifferenceOf255": self.difference,
            "others": "Pillow",
        }

    def accept(self, data: bytes, max_pixels: int) -> Jpeg | None:
        """The file with its header if the GPU may decode it; None if the CPU has to.

        Args:
            data: the file.
            max_pixels: of one image; the CPU refuses larger ones.
        """
        header = jpeg_headers.read(data)
        if header is None:
            return None
        short, long = sorted((header.width, header.height))
        fits = short * long <= min(max_pixels, MAX_PIXELS) and long <= MAX_ELONGATION * short
        return Jpeg(data, header) if fits and long <= MAX_REDUCTION * self.preprocess.resize else None

    @torch.inference_mode()
    def __call__(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        """One crop per file, in order; None for a file that the engines did not decode.

        Launches work on the current stream and does not wait for it.
        """
        crops: list[DeviceCrop | None] = []
        for part in _parts(jpegs):
            found = self._attempt(part)
            if None in found and len(part) > 1:
                # A file that cannot be decoded may spoil the whole batch, so each is decoded by itself.
                found = [self._attempt([jpeg])[0] for jpeg in part]
            crops += found
        return crops

    def _attempt(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        """What _decode returns, or None for every file if it raises. Ends the process if the GPU is lost."""
        try:
            return self._decode(jpegs)
        except Exception as error:  # short memory, or whatever the library raises for a file
            exit_if_gpu_lost()
            logger.warning("%d JPEGs were not decoded on the GPU: %s", len(jpegs), type(error).__name__)
            return [None] * len(jpegs)

    def _decode(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        stream = torch.cuda.current_stream(self.device)
        if self.pending:  # kernels may still read the last pictures, and decoding would reuse their memory
            stream.synchronize()
            self.pending = []
        streams = [self.codec.CodeStream(jpeg.data) for jpeg in jpegs]
        decoded = self.decoder.decode(streams, params=self.parameters, cuda_stream=stream.cuda_stream)
        self.pending = decoded  # the kernels below may still read them when this returns
        described = [
            self._picture(image, jpeg.header)
            for image, jpeg in zip(decoded, jpegs, strict=True)
            if _is_right(image, jpeg.header)
        ]
        size = self.preprocess.size
        batch = torch.empty((len(described), size, size, 3), dtype=self.dtype, device=self.device)  # (N, S, S, 3)
        if described:
            self.kernels.crops(described, self.preprocess.interpolation, self.scale, self.shift, batch)
        rows = iter(range(len(described)))
        return [
            DeviceCrop(batch, next(rows)) if _is_right(image, jpeg.header) else None
            for image, jpeg in zip(decoded, jpegs, strict=True)
        ]

    def _picture(self, image: Any, header: Header) -> Any:
        """The kernel's description of one decoded picture."""
        width, height = header.width, header.height
        upright = (width, height) if header.orientation < 5 else (height, width)
        placed = placement(*upright, self.preprocess)
        address = image.__cuda_array_interface__["data"][0]
        resized, corner = (placed.width, placed.height), (placed.left, placed.top)
        return self.kernels.Picture(address, image.strides, width, height, resized, corner, header.orientation)

    def _largest_difference(self) -> int:
        """The largest difference from the CPU's pixels, in levels of 255, over files of every accepted kind."""
        exact = GpuDecoder.__new__(GpuDecoder)
        exact.__dict__ |= self.__dict__ | {"dtype": torch.float32}
        exact.scale, exact.shift = torch.ones(3, device=self.device), torch.zeros(3, device=self.device)
        files = list(_test_files())
        accepted = [self.accept(data, MAX_PIXELS) for data in files]
        crops = exact([jpeg for jpeg in accepted if jpeg is not None])
        if len(crops) != len(files) or None in crops:
            raise RuntimeError("it did not decode a JPEG that it should")
        differences = [
            np.abs(found.batch[found.row].cpu().numpy() - crop(formats.decode(data, MAX_PIXELS), self.preprocess))
            for found, data in zip(crops, files, strict=True)
            if found is not None
        ]
        return int(max(difference.max() for difference in differences))


def load(
    asked: str,
    preprocess: Preprocess,
    device: torch.device,
    dtype: torch.dtype,
    gate: Mapping[str, Any] | None = None,
) -> tuple[GpuDecoder | None, str]:
    """Return the decoder and what the parity gate said of it, or None and why Pillow decodes JPEGs instead.

    Args:
        asked: the setting `decoder`: "auto", "gpu" or "cpu".
        preprocess: the archive's settings.
        device: of the network.
        dtype: of the network's input.
        gate: the result of the parity gate for JPEGs in this precision, as the provenance has it; none if packaging
            ran on a machine without such a decoder.

    Raises ValueError if "gpu" is asked for, and the GPU cannot decode or missed the gate.
    """
    if asked == "cpu":
        return None, "asked for"
    why = why_unavailable(preprocess, device) or _why_missed(gate)
    if why is None:
        try:
            return GpuDecoder(preprocess, device, dtype), _said(gate)
        except Exception as error:  # the library has many classes of its own
            why = f"the GPU does not decode JPEGs as the CPU does: {error}"
    if asked == "gpu":
        raise ValueError(f"decoder: gpu is asked for, and {why}; decoder: auto would use the CPU")
    if device.type == "cuda":
        logger.warning("JPEGs are decoded on the CPU, which is several times slower: %s", why)
    return None, why


def _why_missed(gate: Mapping[str, Any] | None) -> str | None:
    if not gate or gate.get("passed"):
        return None
    return "the answers to JPEGs that the GPU decoded missed the parity gate when the archive was packaged"


def _said(gate: Mapping[str, Any] | None) -> str:
    """Return what the parity gate said of a decoder that serves."""
    if not gate:
        return "the archive holds no parity figures for JPEGs decoded on a GPU; pixels were compared at load"
    return f"passed the parity gate against the CPU's decoder, measured on {gate.get('device', 'an unnamed device')}"


def _is_right(image: Any, header: Header) -> bool:
    return image is not None and tuple(image.shape) == (header.height, header.width, 3)


def _parts(jpegs: Sequence[Jpeg]) -> Iterator[Sequence[Jpeg]]:
    """Consecutive files whose pixels together stay within MAX_PIXELS_TOGETHER."""
    first = pixels = 0
    for index, (_, header) in enumerate(jpegs):
        pixels += header.width * header.height
        if pixels > MAX_PIXELS_TOGETHER:
            yield jpegs[first:index]
            first, pixels = index, header.width * header.height
    if jpegs:
        yield jpegs[first:]


def _test_files() -> Iterator[bytes]:
    """JPEGs that show how decoders differ: colour edges, odd sizes, all subsamplings, grey, a rotated one."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((333, 251), Image.Resampling.BICUBIC)
    picture.paste((255, 0, 0), (40, 30, 90, 60))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for options in ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"exif": rotated.tobytes()}):
        yield _jpeg(picture, **options)
    yield _jpeg(picture.convert("L"))


def _jpeg(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()
