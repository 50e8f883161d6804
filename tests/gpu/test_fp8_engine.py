"""fp8 of the fused encoder on an NVIDIA GPU: cuBLASLt and Triton against the PyTorch twin, call by call and whole."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch

from handlers.encoder import fp8
from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import Norm, Positions, Segments

GPU = torch.device("cuda", 0)
HALF = torch.float16
TWIN = fp8.Fp8TorchOps()


def _too_old() -> bool:
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(GPU) < (9, 0)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_too_old(), reason="needs an NVIDIA GPU of compute capability 9.0 or newer"),
]


@pytest.fixture(scope="module")
def operations() -> Any:
    from handlers.encoder.fp8_triton import Fp8TritonOps

    return Fp8TritonOps(GPU)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal, in fp16 on the GPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(GPU, HALF)


def layer(out: int, depth: int) -> fp8.Fp8Linear:
    return fp8.Fp8Linear(values(out, depth, seed=1) / depth**0.5, values(out, seed=2), 6.0)


def assert_rounded_alike(
    found: torch.Tensor, wanted: torch.Tensor, unsure: float = 0.02, alike: float = 0.97
) -> None:
    """What lies at the edge between two of e4m3's numbers may fall to either side: a step, which is 1/8 at most."""
    assert found.dtype == wanted.dtype == fp8.E4M3
    found, wanted = found.float(), wanted.float()
    assert (found == wanted).float().mean() > alike
    assert ((found - wanted).abs() <= 0.126 * torch.maximum(found.abs(), wanted.abs()) + unsure).all()


# Beyond 512 rows the product with the activation inside has larger tiles.
@pytest.mark.parametrize("rows", [1, 100, 600, 2500])
@pytest.mark.parametrize(("hidden", "inner"), [(1024, 4096), (384, 1536)])
def test_calls_are_the_twins(operations: Any, rows: int, hidden: int, inner: int) -> None:
    up, down = layer(inner, hidden), layer(hidden, inner)
    x, wide = values(rows, hidden), values(rows, inner, seed=3)
    x8 = fp8.quantise(x, up.input_scale)
    assert_rounded_alike(operations.quantise(x, 0.01), TWIN.quantise(x, 0.01))
    torch.testing.assert_close(
        operations.linear8(x8, up, HALF, True), TWIN.linear8(x8, up, HALF, True), rtol=1e-2, atol=1e-2
    )
    for activation in ("gelu", "relu", "tanh"):
        wanted = TWIN.linear_activation8(x8, up, activation, 0.01, torch.float32)
        # Tensor cores sum e4m3 products to some 13 bits: 0.01 of a sum of this size, which is one here.
        found = operations.linear_activation8(x8, up, activation, 0.01, HALF)
        assert_rounded_alike(found, wanted, unsure=1.0, alike=0.95 if activation == "gelu" else 0.97)  # in fp16
    wide8, norm = fp8.quantise(wide, down.input_scale), Norm(values(hidden, seed=4), values(hidden, seed=5), 1e-12)
    summed = operations.linear8(wide8, down, HALF, False)
    found, found8 = operations.add_norm8(summed, x, down.bias, norm, 0.01)
    exact = Norm(norm.weight.float(), norm.bias.float(), norm.eps)
    wanted, wanted8 = TWIN.add_norm8(summed.float(), x.float(), down.bias.float(), exact, 0.01)
    torch.testing.assert_close(found.float(), wanted, rtol=4e-3, atol=4e-3)
    assert_rounded_alike(found8, wanted8)


def test_gelu_of_every_size_is_rounded_as_the_exact_one(operations: Any) -> None:
    """In the kernel it is computed in fp16: at most one of e4m3's steps away, and where it is negative 4e-4."""
    bias, out_scale = torch.linspace(-10, 10, 8192, dtype=HALF, device=GPU), 0.02
    up = fp8.Fp8Linear(torch.ones(8192, 256, dtype=HALF, device=GPU), bias, 1.0)
    x8 = fp8.quantise(torch.zeros(700, 256, device=GPU), up.input_scale)
    found = operations.linear_activation8(x8, up, "gelu", out_scale, HALF).float()
    assert (found == found[0]).all()
    wanted = fp8.quantise(torch.nn.functional.gelu(bias.float()), out_scale).float()
    step = torch.exp2(torch.floor(torch.log2(wanted.abs().clamp(min=2**-6))) - 3)
    assert ((found[0] - wanted).abs() <= torch.maximum(step, torch.full_like(step, 5e-4 / out_scale))).all()
    assert (found[0] == wanted).float().mean() > 0.9
    for size, least in ((60_000.0, 448.0), (-60_000.0, 0.0)):
        up.bias.fill_(size)
        assert (operations.linear_activation8(x8, up, "gelu", out_scale, HALF).float() == least).all()


@pytest.mark.parametrize("lengths", [(9, 130, 1, 40), (128,) * 20], ids=str)
def test_a_whole_encoder_is_as_near_fp32_as_its_twin(operations: Any, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = FusedEncoder(EncoderConfig(4, 1024, 16, 4096, "gelu", 1e-12))
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_weight" in name else 0.0, std=0.02)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=GPU)
    segments, hidden = Segments(offsets, lengths), values(sum(lengths), 1024)
    calibration = fp8.Calibration()
    encoder = encoder.to(GPU)
    exact = encoder(hidden.float(), segments, calibration)
    largest = calibration.of(encoder)
    low = fp8.Fp8Encoder(encoder.to(HALF), largest)
    twin = low(hidden.clone(), segments).float()
    ids = torch.zeros(sum(lengths), dtype=torch.int64, device=GPU)
    laid_out, _ = operations.prepare_packed(ids, segments, Positions())
    low.ops = operations
    found = low(hidden.clone(), laid_out).float()
    ours, own = ((one - exact).norm(dim=1) / exact.norm(dim=1) for one in (found, twin))
    print(f"error against fp32: ours {ours.mean():.4f}, the twin's {own.mean():.4f}")
    assert ours.mean() <= 1.1 * own.mean()
    assert ours.max() <= 2 * own.max()
