"""JPEGs by the GPU's engines and its resize kernel, against Pillow's pixels; broken and hostile files among them."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.images import cropping, formats, gpu_decoder
from handlers.images.gpu_decoder import GpuDecoder
from handlers.images.preprocess import Preprocess
from handlers.protocol.errors import RequestError

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
MOST = 50_000_000
SIZES = [
    (500, 375),
    (375, 500),
    (333, 251),
    (224, 224),
    (256, 256),
    (100, 75),
    (17, 9),
    (8, 8),
    (1280, 960),
    (640, 97),
]


def jpeg_of(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def decoder_for(preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> GpuDecoder:
    why = gpu_decoder.why_unavailable(preprocess, DEVICE)
    if why:
        pytest.skip(why)
    try:
        found = GpuDecoder(preprocess, DEVICE, dtype)
    except RuntimeError as error:
        pytest.skip(f"this GPU decodes no JPEGs: {error}")
    return found


def levels(found: GpuDecoder, data: bytes) -> Any:
    """The crop of one file in levels of 0..255."""
    jpeg = found.accept(data, MOST)
    assert jpeg is not None
    crop = found([jpeg])[0]
    assert crop is not None
    return ((crop.batch[crop.row].float() + found.shift) / found.scale).cpu().numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rounding", ["down", "even"])
def test_pixels_are_pillows(interpolation: str, rounding: str) -> None:
    preprocess = Preprocess(size=224, resize=235, interpolation=interpolation, crop_rounding=rounding)
    found = decoder_for(preprocess)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for index, size in enumerate(SIZES):
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = index % 8 + 1
        for subsampling in range(3):
            data = jpeg_of(picture, quality=92, subsampling=subsampling, exif=exif.tobytes())
            wanted = cropping.crop(formats.decode(data, MOST), preprocess)
            difference = np.abs(levels(found, data) - wanted)
            assert difference.max() <= 2.01, (size, subsampling, index)
            assert difference.mean() < 0.1, (size, subsampling, index)


def test_a_batch_is_answered_in_order_and_like_lone_files() -> None:
    found = decoder_for(Preprocess(size=224, resize=256), torch.float16)
    files = [jpeg_of(Image.new("RGB", (90 + 5 * i, 80), (i, 255 - i, 2 * i % 256))) for i in range(100)]
    jpegs = [found.accept(data, MOST) for data in files]
    together = found([jpeg for jpeg in jpegs if jpeg])
    for jpeg, crop in zip(jpegs, together, strict=True):
        assert jpeg is not None
        assert crop is not None
        alone = found([jpeg])[0]
        assert alone is not None
        assert torch.equal(crop.batch[crop.row], alone.batch[alone.row])


def test_broken_files_hurt_nobody_else() -> None:
    """2,000 damaged files, each beside a good one: the good one's pixels stay, and the GPU does."""
    found = decoder_for(Preprocess(size=224, resize=256))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    good = jpeg_of(picture, quality=80)
    wanted = levels(found, good)
    whole = found.accept(good, MOST)
    assert whole is not None
    dice = random.Random(0)
    taken = 0
    for _ in range(250):
        batch = [whole]
        for _ in range(8):
            data = bytearray(good)
            for _ in range(dice.choice((1, 3, 30))):
                data[dice.randrange(2, len(data) - 2)] = dice.randrange(256)
            if dice.random() < 0.3:
                at = dice.randrange(600, len(data) - 50)
                del data[at : at + dice.randrange(1, len(data) - at)]
                data += b"\xff\xd9"
            if (jpeg := found.accept(bytes(data), MOST)) is not None:
                batch.append(jpeg)
        taken += len(batch) - 1
        batch.append(whole)
        crops = found(batch)
        for crop in (crops[0], crops[-1]):
            assert crop is not None
            levels_now = ((crop.batch[crop.row] + found.shift) / found.scale).cpu().numpy()
            assert np.abs(levels_now - wanted).max() < 0.01
    torch.cuda.synchronize()
    assert taken > 500


def test_what_pillow_refuses_is_not_decoded() -> None:
    found = decoder_for(Preprocess(size=224, resize=256))
    good = jpeg_of(Image.new("RGB", (200, 150), (1, 2, 3)))
    for data in (good[:-200], good[:300], b"", b"\xff\xd8\xff\xd9"):
        assert found.accept(data, MOST) is None
        with pytest.raises(RequestError):
            formats.decode(data, MOST)
    assert Image.open(io.BytesIO(good)).size == (200, 150)
