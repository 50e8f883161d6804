"""Measure what an image costs the CPU, by step, and what shorter ways save and change.

    .venv/bin/python scripts/research/cpu_images.py --out images.json

  decode   a JPEG to pixels
  whole    resize of the whole image, then the crop: the libraries' pixels
  box      resize of what the crop shows: fp16 and bf16 take it
  order    the same as box, with columns before rows where Pillow takes rows first: what the order alone changes
  scaled   decoding and resize if libjpeg makes the image smaller by 2, 4 or 8 while it decodes, to at least so many
           times the resized image's size as the row says; all together, to be compared with decode + whole
  stack    64 crops into one new array, and into one that is kept

The pictures are eight views of the project's two photographs, enlarged, with grain as a sensor's (--grain, in levels
of 255), saved with quality 94. Times are milliseconds of one thread's CPU per picture, the least of some repeats.
Differences are levels of 255. `logits` are relative errors, of the worst picture, of the digits' network and of a
ResNet-50 with random weights; handlers/selection/tolerances.py has the limits. `fp16_input` is what rounding the
network's input to fp16 changes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from serving_bench.environment import environment
from serving_bench.option_types import size as image_size

from archive import parity, random_weights, sample_images
from archive.checkpoints import image_checkpoints
from handlers.images import batching, formats
from handlers.images.cropping import Crop, crop
from handlers.images.geometry import placement
from handlers.images.preprocess import INTERPOLATIONS, Preprocess

PREPROCESSING = {
    "bilinear 256": Preprocess(224, 256),
    "bilinear 232": Preprocess(224, 232, crop_rounding="even"),
    "bicubic 235": Preprocess(224, 235, interpolation="bicubic", crop_rounding="even"),
    "bicubic 224": Preprocess(224, 224, interpolation="bicubic"),
}
SIZES = [(500, 375), (1280, 960), (4000, 3000)]
FACTORS = (1, 2, 4)
MAX_PIXELS = 50_000_000
QUALITY = 94
DIGITS = Path(sample_images.__file__).parent / "digits"
RESNET50 = {"layers": "bottleneck", "depths": [3, 4, 6, 3]}
BATCH = 64
Networks = dict[str, torch.nn.Module]


def pictures(size: tuple[int, int], grain: float) -> list[bytes]:
    """Return eight JPEGs. size: in pixels. grain: standard deviation of the brightness, in levels of 255."""
    chance = np.random.default_rng(0)
    files = []
    for view in sample_images.photographs()[::2]:
        with Image.open(io.BytesIO(view)) as image:
            enlarged = np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC))
        noise = chance.normal(0, grain, (*enlarged.shape[:2], 1)).round()
        stream = io.BytesIO()
        Image.fromarray(np.clip(enlarged + noise, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    return files


def networks() -> Networks:
    """Return networks in fp32, by name. They take any size."""
    calibration = sample_images.photographs()
    config = random_weights.resnet_config(RESNET50)
    resnet = random_weights.image_checkpoint(config, calibration, PREPROCESSING["bilinear 256"])
    found = {"digits": image_checkpoints.read(DIGITS), "resnet50": resnet}
    return {name: checkpoint.network().eval() for name, checkpoint in found.items()}


def rows(size: tuple[int, int], name: str, files: Sequence[bytes], nets: Networks) -> Iterator[dict[str, Any]]:
    """Yield the figures of one size of pictures in one preprocessing."""
    preprocess = PREPROCESSING[name]
    images = [formats.decode(data, MAX_PIXELS) for data in files]
    exact = [crop(image, preprocess) for image in images]
    compared = Compared(exact, preprocess, nets)
    first, shown = images[0], {"size": f"{size[0]}x{size[1]}", "preprocessing": name}
    yield {**shown, "way": "decode", "ms": least(lambda: formats.decode(files[0], MAX_PIXELS))}
    yield {**shown, "way": "whole", "ms": least(lambda: crop(first, preprocess)), **compared.fp16_input()}
    box = [crop(image, preprocess, exact=False) for image in images]
    yield {**shown, "way": "box", "ms": least(lambda: crop(first, preprocess, exact=False)), **compared(box)}
    yield {**shown, "way": "order", **compared([columns_first(image, preprocess) for image in images])}
    for factor in FACTORS:
        smaller = [scaled(data, preprocess, factor) for data in files]
        decoded = sorted({f"{image.width}x{image.height}" for image in smaller})
        yield {
            **shown, "way": f"scaled, {factor}x", "decoded": decoded,
            "ms": least(lambda factor=factor: crop(scaled(files[0], preprocess, factor), preprocess)),  # type: ignore[misc]
            **compared([crop(image, preprocess) for image in smaller]),
        }  # fmt: skip


def scaled(data: bytes, preprocess: Preprocess, factor: float) -> Image.Image:
    """Return a JPEG, made smaller while it is decoded, but not below `factor` times its resized size."""
    image = Image.open(io.BytesIO(data))
    placed = placement(image.width, image.height, preprocess)
    image.draft("RGB", (int(placed.width * factor), int(placed.height * factor)))
    image.load()
    return image


def columns_first(image: Image.Image, preprocess: Preprocess) -> Crop:
    """Return the crop of the whole image, with columns resized before rows."""
    placed, filter_ = placement(image.width, image.height, preprocess), INTERPOLATIONS[preprocess.interpolation]
    resized = image.resize((image.width, placed.height), filter_).resize((placed.width, placed.height), filter_)
    height, width = preprocess.shape
    return np.asarray(resized.crop((placed.left, placed.top, placed.left + width, placed.top + height)))


class Compared:
    """Compares crops, and the networks' logits of them, with the exact ones."""

    def __init__(self, exact: Sequence[Crop], preprocess: Preprocess, nets: Networks) -> None:
        self.exact, self.nets = np.stack(exact).astype(int), nets
        self.batcher = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
        self.inputs = self.batcher(exact)
        self.logits = self._logits(self.inputs)

    def __call__(self, crops: Sequence[Crop]) -> dict[str, Any]:
        apart = np.abs(np.stack(crops) - self.exact)
        return {
            "mean_difference": round(float(apart.mean()), 3),
            "largest_difference": int(apart.max()),
            "values_that_differ": float(f"{(apart > 0).mean():.2g}"),
            "logits": self._errors(self.batcher(crops)),
        }

    def fp16_input(self) -> dict[str, Any]:
        """Return what rounding the networks' input to fp16 changes."""
        return {"fp16_input": self._errors(self.inputs.half().float())}

    def _errors(self, inputs: torch.Tensor) -> dict[str, float]:
        return {
            name: float(f"{parity.relative_errors(logits, self.logits[name]).max():.1e}")
            for name, logits in self._logits(inputs).items()
        }

    @torch.inference_mode()
    def _logits(self, inputs: torch.Tensor) -> dict[str, NDArray[np.float32]]:
        return {name: network(inputs).logits.numpy() for name, network in self.nets.items()}


def stacking() -> dict[str, Any]:
    """Return the milliseconds per batch of crops, into a new array and into one that is kept."""
    crops = [np.asarray(Image.new("RGB", (224, 224), (index, 2, 3))) for index in range(BATCH)]
    kept = np.zeros((BATCH, 224, 224, 3), np.uint8)
    return {
        "way": f"stack, {BATCH} crops",
        "new_ms": least(lambda: np.stack(crops, out=torch.empty(kept.shape, dtype=torch.uint8).numpy())),
        "kept_ms": least(lambda: np.stack(crops, out=kept)),
    }


def least(work: Callable[[], object], seconds: float = 0.4) -> float:
    """Return milliseconds of this thread's CPU: the least of three repeats or more."""
    found: list[float] = []
    ends = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < ends:
        began = time.thread_time()
        work()
        found.append(1000 * (time.thread_time() - began))
    return float(f"{min(found):.3g}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("sizes", nargs="*", type=image_size, default=SIZES, metavar="WxH", help="of the pictures")
    found.add_argument("--preprocessing", nargs="+", choices=PREPROCESSING, default=list(PREPROCESSING))
    found.add_argument("--grain", type=float, default=8, help="levels of 255 (default: 8)")
    found.add_argument("--out", type=Path, metavar="FILE.json")
    found.add_argument("--commit", help="for the report (default: git describe)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    torch.set_num_threads(1)
    nets, found = networks(), [stacking()]
    print(json.dumps(found[0]), flush=True)
    for size in chosen.sizes:
        files = pictures(size, chosen.grain)
        for name in chosen.preprocessing:
            for row in rows(size, name, files, nets):
                found.append(row)
                print(json.dumps(row), flush=True)
    if chosen.out:
        content = {"conditions": environment(chosen.commit), "grain": chosen.grain, "rows": found}
        chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
