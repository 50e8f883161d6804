"""Which pictures the GPU decodes, and what becomes of the others. A fake codec stands in for the GPU's."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.image_classifier import ImageClassifier
from handlers.images import batching, cropping, gpu_decoder, jpeg_headers, preparation
from handlers.images.batching import Batcher, DeviceCrop
from handlers.images.gpu_decoder import GpuDecoder, Jpeg
from handlers.images.preprocess import Preprocess

PREPROCESS = Preprocess(size=32, resize=36)
CPU = torch.device("cpu")
Encode = Callable[..., bytes]


class FakeCodec:
    """nvImageCodec's decoder on the CPU: Pillow's pixels; `fails` says of which file it returns none."""

    def __init__(self, fails: Callable[[bytes], bool] = lambda data: False) -> None:
        self.fails, self.batches, self.takes_all = fails, list[int](), False

    def CodeStream(self, data: bytes) -> bytes:  # noqa: N802
        return data

    def decode(self, streams: Sequence[bytes], **options: Any) -> list[Any]:
        self.batches.append(len(streams))
        return [
            None if self.fails(data) else np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in streams
        ]


class FakeKernels:
    """handlers.kernels.resize by Pillow."""

    Picture = SimpleNamespace

    @staticmethod
    def crops(pictures: Sequence[Any], interpolation: str, scale: Any, shift: Any, out: torch.Tensor) -> torch.Tensor:
        for row, picture in zip(out, pictures, strict=True):
            row.copy_(
                torch.from_numpy(cropping.crop(Image.fromarray(picture), PREPROCESS).copy()).float() * scale - shift
            )
        return out


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> GpuDecoder:
    made = GpuDecoder.__new__(GpuDecoder)
    made.codec = made.decoder = FakeCodec()
    vars(made).update(kernels=FakeKernels(), parameters=None)
    made.pending = []
    made.preprocess, made.device, made.dtype = PREPROCESS, CPU, torch.float32
    made.scale, made.shift = batching.scale_and_shift(PREPROCESS, CPU)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(made, "_picture", lambda image, header: image)
    return made


def accepted(decoder: GpuDecoder, data: bytes) -> Jpeg:
    jpeg = decoder.accept(data, 50_000_000)
    assert jpeg is not None
    return jpeg


def test_crops_are_the_cpus(decoder: GpuDecoder, picture: Image.Image, file_of: Encode) -> None:
    files = [file_of(picture, "JPEG"), file_of(picture.rotate(90, expand=True), "JPEG")]
    found = Batcher(PREPROCESS, CPU, torch.float32)(decoder([accepted(decoder, data) for data in files]))
    crops = [crop for data in files for crop in preparation.prepare(data, PREPROCESS, 50_000_000)]
    torch.testing.assert_close(found, Batcher(PREPROCESS, CPU, torch.float32)(crops))


@pytest.mark.parametrize("takes_all", [False, True], ids=["alone", "with its batch"])
def test_a_file_that_the_engines_do_not_decode_leaves_its_neighbours_alone(
    decoder: GpuDecoder, picture: Image.Image, file_of: Encode, takes_all: bool
) -> None:
    """Also if the library gives up the whole batch for it."""
    decoder.decoder.takes_all = takes_all
    good, bad = file_of(picture, "JPEG"), file_of(picture, "JPEG", quality=20)
    decoder.decoder.fails = lambda data: data == bad
    first, none, last = decoder([accepted(decoder, data) for data in (good, bad, good)])
    assert none is None
    assert isinstance(first, DeviceCrop)
    assert isinstance(last, DeviceCrop)
    assert torch.equal(first.batch[first.row], last.batch[last.row])


def test_a_picture_of_another_size_than_its_header_says_is_not_taken(
    decoder: GpuDecoder, picture: Image.Image, file_of: Encode
) -> None:
    jpeg = accepted(decoder, file_of(picture, "JPEG"))
    assert decoder([jpeg._replace(header=jpeg.header._replace(width=9))]) == [None]


def test_many_pixels_are_decoded_in_parts(
    decoder: GpuDecoder, picture: Image.Image, file_of: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_decoder, "MAX_PIXELS_TOGETHER", 2 * picture.width * picture.height)
    crops = decoder([accepted(decoder, file_of(picture, "JPEG"))] * 5)
    assert decoder.decoder.batches == [2, 2, 1]
    assert len(crops) == 5


def test_what_does_not_pay_or_may_differ_goes_the_cpus_way(
    decoder: GpuDecoder, picture: Image.Image, file_of: Encode
) -> None:
    refused = {
        "progressive": file_of(picture, "JPEG", progressive=True),
        "a strip": file_of(picture.resize((90, 10)), "JPEG"),
        "one that shrinks much": file_of(picture.resize((700, 700)), "JPEG"),
        "a PNG": file_of(picture, "PNG"),
    }
    assert {name: decoder.accept(data, 50_000_000) for name, data in refused.items()} == dict.fromkeys(refused)
    assert decoder.accept(file_of(picture, "JPEG"), max_pixels=100) is None  # for the CPU's way to refuse


def test_test_files_are_of_every_kind_that_the_gpu_decodes() -> None:
    headers = [jpeg_headers.read(data) for data in gpu_decoder._test_files()]
    assert {header.subsampling for header in headers if header} == {*jpeg_headers.SUBSAMPLINGS.values(), "grey"}
    assert None not in headers


def test_without_a_gpu_the_cpu_decodes_and_gpu_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert gpu_decoder.load("auto", PREPROCESS, CPU, torch.float32) == (
            None,
            "it needs an NVIDIA GPU, and the device is cpu",
        )
        assert gpu_decoder.load("cpu", PREPROCESS, CPU, torch.float32) == (None, "asked for")
    assert not caplog.records  # nobody expected a GPU
    with pytest.raises(ValueError, match=r"decoder: gpu is asked for, and it needs an NVIDIA GPU"):
        gpu_decoder.load("gpu", PREPROCESS, CPU, torch.float32)


def test_other_pixels_are_refused(
    decoder: GpuDecoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A codec whose chroma is wrong is left out under auto, and named."""

    def differing(*arguments: object) -> GpuDecoder:
        raise RuntimeError("its pixels differ from the CPU's by 20 of 255")

    monkeypatch.setattr(gpu_decoder, "why_unavailable", lambda *arguments: None)
    monkeypatch.setattr(gpu_decoder, "GpuDecoder", differing)
    found, why = gpu_decoder.load("auto", PREPROCESS, torch.device("cuda", 0), torch.float16)
    assert found is None
    assert "by 20 of 255" in why
    assert "by 20 of 255" in caplog.text


def test_a_decoder_that_missed_the_gate_at_packaging_is_left_out(
    decoder: GpuDecoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_decoder, "why_unavailable", lambda *arguments: None)
    monkeypatch.setattr(gpu_decoder, "GpuDecoder", lambda *arguments: decoder)
    arguments = PREPROCESS, torch.device("cuda", 0), torch.float16
    assert gpu_decoder.load("auto", *arguments, {"passed": True, "device": "a card"}) == (
        decoder,
        "passed the parity gate against the CPU's decoder, measured on a card",
    )
    found, said = gpu_decoder.load("auto", *arguments, None)
    assert found is decoder
    assert "no parity figures" in said
    found, why = gpu_decoder.load("auto", *arguments, {"passed": False, "device": "a card"})
    assert found is None
    assert "missed the parity gate when the archive was packaged" in why
    assert why in caplog.text
    with pytest.raises(ValueError, match="decoder: gpu is asked for, and the answers to JPEGs"):
        gpu_decoder.load("gpu", *arguments, {"passed": False})


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "missed the parity gate"), ("fp16", "no decoder here")])
def test_a_worker_reads_the_gates_result_of_its_precision(
    digits_folder: Path, tmp_path: Path, load_handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    precision: str, expected: str,
) -> None:  # fmt: skip
    def none(*arguments: object) -> GpuDecoder:
        raise RuntimeError("no decoder here")

    monkeypatch.setattr(gpu_decoder, "why_unavailable", lambda *arguments: None)
    monkeypatch.setattr(gpu_decoder, "GpuDecoder", none)
    folder = shutil.copytree(digits_folder, tmp_path / "digits")
    (folder / "provenance.json").write_text(json.dumps({"jpegs": {precision: {"passed": False}}}), encoding="utf-8")
    handler = load_handler(ImageClassifier, folder, preprocess={"size": 32, "resize": 32})
    assert expected in handler.model.description["decoder"]["why"]


def test_an_error_of_the_library_sends_pictures_the_cpus_way(
    decoder: GpuDecoder, picture: Image.Image, file_of: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(streams: Sequence[bytes], **options: Any) -> list[Any]:
        raise RuntimeError("a library's own words")

    jpeg = accepted(decoder, file_of(picture, "JPEG"))
    monkeypatch.setattr(decoder.decoder, "decode", broken)
    assert decoder([jpeg, jpeg]) == [None, None]
