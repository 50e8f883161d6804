"""Compare libraries that decode JPEGs: images/s, and how far their pixels are from Pillow's.

    .venv/bin/python scripts/research/jpeg_decoders.py --out decoders.json

The files are two photographs of this project at 500 x 375 pixels, in batches of 64 (--size, --batch). Each library
gets the bytes of a batch and gives uint8 pixels, on the GPU if it can. One thread calls it. What is not installed, or
cannot decode here, is named with the reason.

Pixels are compared over the two photographs and over small files with all subsamplings of colour. A library that
repeats colour samples, where Pillow interpolates them, shows it there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from serving_bench import loads
from serving_bench.environment import environment
from serving_bench.option_types import size as image_size

Pixels = NDArray[np.uint8]  # (H, W, 3)
Decode = Callable[[Sequence[bytes]], list[Any]]  # files -> tensors or images, maybe still being computed


class Library:
    """A library that decodes.

    Args:
        name: for people.
        package: its distribution, for the version.
        decode: starts decoding a batch.
        pixels: one result of it -> (H, W, 3).
        on_gpu: whether to wait for the GPU.
    """

    def __init__(
        self, name: str, package: str, decode: Decode, pixels: Callable[[Any], Pixels], *, on_gpu: bool
    ) -> None:
        self.name, self.package, self.decode, self.pixels, self.on_gpu = name, package, decode, pixels, on_gpu

    def timed(self, files: Sequence[bytes], seconds: float) -> float:
        """Return images/s, over at least `seconds` after one batch that does not count."""
        self._finished(files)
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            self._finished(files)
            count += len(files)
        return count / passed

    def _finished(self, files: Sequence[bytes]) -> None:
        decoded = self.decode(files)
        if self.on_gpu:
            torch.cuda.synchronize()
        del decoded

    def differences(self, files: Sequence[bytes]) -> tuple[float, int]:
        """Return the mean and the largest difference from Pillow's pixels, in levels of 255."""
        found = [self.pixels(image).astype(int) for image in self.decode(files)]
        apart = np.concatenate([np.abs(a - pillow(b)).ravel() for a, b in zip(found, files, strict=True)])
        return float(apart.mean()), int(apart.max())


def pillow(data: bytes) -> Pixels:
    """Return Pillow's pixels of a file, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def with_pillow() -> Library:
    return Library("Pillow, CPU", "pillow", lambda files: [pillow(data) for data in files], np.asarray, on_gpu=False)


def with_nvimgcodec(kind: str) -> Library:
    """kind: of nvImageCodec's backends. HW_GPU_ONLY: the GPU's JPEG engines alone."""
    from nvidia import nvimgcodec

    parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
    backend = nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, kind))
    decoder = nvimgcodec.Decoder(device_id=0, max_num_cpu_threads=1, backends=[backend])

    def decode(files: Sequence[bytes]) -> list[Any]:
        decoded = decoder.decode([nvimgcodec.CodeStream(data) for data in files], params=parameters)
        if None in decoded:
            raise ValueError("it leaves files undecoded")
        return list(decoded)

    package = f"nvidia-nvimgcodec-cu{nvimgcodec.__cuda_version__ // 1000}"
    return Library(f"nvImageCodec, {kind}", package, decode, lambda image: np.asarray(image.cpu()), on_gpu=True)


def with_torchcodec(device: str) -> Library:
    from torchcodec.decoders import decode_jpeg

    if device == "cpu":
        return Library(
            "TorchCodec, CPU", "torchcodec", lambda files: [decode_jpeg(data) for data in files], _channels_last,
            on_gpu=False,
        )  # fmt: skip
    return Library(
        "TorchCodec, GPU", "torchcodec", lambda files: list(decode_jpeg(_tensors(files), device=device)),
        _channels_last, on_gpu=True,
    )  # fmt: skip


def with_torchvision(device: str) -> Library:
    from torchvision.io import ImageReadMode, decode_jpeg

    return Library(
        f"torchvision, {'GPU' if device != 'cpu' else 'CPU'}", "torchvision",
        lambda files: list(decode_jpeg(_tensors(files), mode=ImageReadMode.RGB, device=device)),
        _channels_last, on_gpu=device != "cpu",
    )  # fmt: skip


LIBRARIES: dict[str, Callable[[], Library]] = {
    "pillow": with_pillow,
    "nvimgcodec-engines": lambda: with_nvimgcodec("HW_GPU_ONLY"),
    "nvimgcodec-hybrid": lambda: with_nvimgcodec("HYBRID_CPU_GPU"),
    "nvimgcodec-gpu": lambda: with_nvimgcodec("GPU_ONLY"),
    "torchcodec-cpu": lambda: with_torchcodec("cpu"),
    "torchcodec-gpu": lambda: with_torchcodec("cuda"),
    "torchvision-cpu": lambda: with_torchvision("cpu"),
    "torchvision-gpu": lambda: with_torchvision("cuda"),
}


def _tensors(files: Sequence[bytes]) -> list[torch.Tensor]:
    return [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]


def _channels_last(image: torch.Tensor) -> Pixels:
    pixels: Pixels = image.permute(1, 2, 0).cpu().numpy()
    return pixels


def subsampled() -> list[bytes]:
    """Return small files with sharp colours: 4:4:4, 4:2:2 and 4:2:0."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((333, 251), Image.Resampling.BICUBIC)
    files = []
    for subsampling in range(3):
        with io.BytesIO() as stream:
            picture.save(stream, "JPEG", quality=90, subsampling=subsampling)
            files.append(stream.getvalue())
    return files


def row(name: str, batch: Sequence[bytes], compared: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Return the figures of one library, or its name and why it has none."""
    try:
        library = LIBRARIES[name]()
        mean, largest = library.differences(compared)
        rate = library.timed(batch, seconds)
    except Exception as error:  # each library has classes of its own
        return {"library": name, "why_not": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    version = importlib.metadata.version(library.package)
    return {
        "library": library.name,
        "version": version,
        "images_per_s": round(rate),
        "mean_difference": round(mean, 3),
        "largest_difference": largest,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("libraries", nargs="*", metavar="NAME", help=f"(default: {' '.join(LIBRARIES)})")
    found.add_argument("--size", type=image_size, default=loads.SIZE, metavar="WxH", help="(default: 500x375)")
    found.add_argument("--batch", type=int, default=64, help="files that are decoded together (default: 64)")
    found.add_argument("--seconds", type=float, default=2, help="per library (default: 2)")
    found.add_argument("--out", type=Path, metavar="FILE.json")
    found.add_argument("--commit", help="for the report (default: git describe)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    if unknown := set(chosen.libraries) - set(LIBRARIES):
        parser().error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(LIBRARIES)}")
    photographs = loads.images(None, chosen.size).bodies
    batch = [photographs[index % len(photographs)] for index in range(chosen.batch)]
    rows = []
    for name in chosen.libraries or LIBRARIES:
        rows.append(row(name, batch, [*photographs, *subsampled()], chosen.seconds))
        print(json.dumps(rows[-1]), flush=True)
    if chosen.out:
        load = {"size": list(chosen.size), "batch": chosen.batch}
        content = {"conditions": environment(chosen.commit), "load": load, "rows": rows}
        chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
