"""fp8 of the fused encoder: rounding, calibration, its file, and Triton's kernels against the PyTorch twin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers.encoder import fp8
from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import ACTIVATIONS, Norm, Segments

CPU = torch.device("cpu")
LENGTHS = (7, 1, 30)
SEGMENTS = Segments(torch.tensor([0, 7, 8, 38], dtype=torch.int32), LENGTHS)
# e4m3 has 3 bits of mantissa: half a step is 1/16 of a number, and two roundings may differ by a step.
STEP = 1 / 8


def encoder(**settings: Any) -> FusedEncoder:
    torch.manual_seed(0)
    built = FusedEncoder(EncoderConfig(**{"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64,
                                          "activation": "gelu", "eps": 1e-12, **settings}))  # fmt: skip
    for name, parameter in built.named_parameters():
        parameter.data.normal_(std=0.3)
        if "norm_weight" in name:
            parameter.data.add_(1)
    return built


def calibrated(built: FusedEncoder, hidden: torch.Tensor) -> list[dict[str, float]]:
    calibration = fp8.Calibration()
    built(hidden.clone(), SEGMENTS, calibration)
    return calibration.of(built)


@pytest.fixture
def hidden() -> torch.Tensor:
    """(38, 32)"""
    return torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))


def test_rounding_saturates_and_is_off_by_half_a_step_at_most() -> None:
    values = torch.linspace(-700, 700, 1001)
    rounded = fp8.quantise(values, 1.0).float()
    inside = values.abs() <= fp8.E4M3_MAX
    assert rounded[~inside].abs().eq(fp8.E4M3_MAX).all()
    assert ((rounded - values).abs()[inside] <= values.abs()[inside] * STEP / 2 + 1e-3).all()
    assert torch.equal(fp8.quantise(values, 2.0).float(), fp8.quantise(values / 2, 1.0).float())


def test_an_encoder_in_fp8_is_near_the_one_it_was(hidden: torch.Tensor) -> None:
    built = encoder()
    wanted = built(hidden.clone(), SEGMENTS)
    found = fp8.Fp8Encoder(built, calibrated(built, hidden))(hidden.clone(), SEGMENTS)
    error = ((found - wanted).norm() / wanted.norm()).item()
    assert 1e-3 < error < 0.25  # random weights amplify rounding
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.9


def test_rows_do_not_depend_on_their_neighbours(hidden: torch.Tensor) -> None:
    built = encoder()
    low = fp8.Fp8Encoder(built, calibrated(built, hidden))
    together = low(hidden.clone(), SEGMENTS)
    alone = low(hidden[8:].clone(), Segments(torch.tensor([0, 30], dtype=torch.int32), (30,)))
    torch.testing.assert_close(together[8:], alone, rtol=1e-4, atol=1e-4)


def test_calibration_is_the_largest_input_of_each_layer(hidden: torch.Tensor) -> None:
    largest = calibrated(encoder(), hidden)
    assert len(largest) == 2
    assert largest[0]["qkv"] == hidden.abs().max().item()
    assert all(value > 0 for one in largest for value in one.values())


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path, hidden: torch.Tensor) -> None:
    largest = calibrated(encoder(), hidden)
    fp8.write(largest, tmp_path)
    assert fp8.read(tmp_path) == largest


def test_no_calibration_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no fp8\.json; package it with --precision fp8"):
        fp8.read(tmp_path)
    for broken in ("{}", "[]", json.dumps({"largest": [{"qkv": 1.0}]}), "{"):
        (tmp_path / fp8.FILE).write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="is no calibration"):
            fp8.read(tmp_path)


def test_refusals(hidden: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="LayerNorm first"):
        fp8.Fp8Encoder(encoder(norm_first=True), [])
    built = encoder()
    with pytest.raises(ValueError, match="calibrated are 1 layers, and the encoder has 2"):
        fp8.Fp8Encoder(built, calibrated(built, hidden)[:1])


def assert_rounded_alike(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Triton's interpreter drops the carry where rounding to e4m3 reaches the next power of two: some percent."""
    assert (found.float() == wanted.float()).float().mean() > 0.93
    found, wanted = found.float(), wanted.float()
    assert ((found - wanted).abs() <= 0.51 * torch.maximum(found.abs(), wanted.abs()) + 0.02).all()


@pytest.mark.parametrize("activation", ["", "gelu", "relu"])
def test_triton_rounds_an_activation(interpreted: Callable[[str], Any], activation: str) -> None:
    values = torch.randn(50, 32)
    wanted = ACTIVATIONS[activation](values) if activation else values
    found = interpreted("linear").activate8(values, activation, 0.01)
    assert_rounded_alike(found, fp8.quantise(wanted, 0.01))


def test_triton_norms_twice(interpreted: Callable[[str], Any]) -> None:
    x, residual = torch.randn(2, 9, 40)
    bias, weight, shift = torch.randn(3, 40)
    wanted, wanted8 = fp8.Fp8TorchOps().add_norm8(x, residual, bias, Norm(weight, shift, 1e-5), 0.01)
    found, found8 = interpreted("encoder").add_norm8(x.unsqueeze(0), residual, bias, weight, shift, 1e-5, 0.01)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert_rounded_alike(found8, wanted8)


# Heads of 8 and of 20 are padded to 16 and 32 in the kernel.
@pytest.mark.parametrize(("heads", "size"), [(4, 8), (2, 20), (1, 64)])
def test_triton_rounds_attention(interpreted: Callable[[str], Any], heads: int, size: int) -> None:
    kernels, qkv = interpreted("encoder"), torch.randn(38, 3 * heads * size)
    tiles, _ = kernels.tiles_and_positions(SEGMENTS.cu_seqlens, torch.zeros(38, dtype=torch.int64), 0, -1)
    found = kernels.attention(qkv, tiles, heads, 0.35, 0.01)
    assert found.shape == (38, heads * size)
    assert_rounded_alike(found, fp8.Fp8TorchOps().attention8(qkv, SEGMENTS, heads, 0.35, 0.01))


@pytest.mark.parametrize("rows", [3, 520])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_triton_rounds_an_activation_inside_its_product(
    interpreted: Callable[[str], Any], rows: int, activation: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, 160), generator=generator)
    layer = fp8.Fp8Linear(torch.randn((272, 160), generator=generator) / 12, torch.randn(272), float(x.abs().max()))
    x8 = fp8.quantise(x, layer.input_scale)
    wanted = fp8.Fp8TorchOps().linear_activation8(x8, layer, activation, 0.01, torch.float32)
    scale = layer.input_scale * layer.weight_scale
    found = interpreted("linear").linear_activation8(x8, layer.weight, layer.bias, activation, scale, 0.01, 3)
    assert_rounded_alike(found, wanted)
