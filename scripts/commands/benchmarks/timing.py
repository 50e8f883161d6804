"""Time single calls, and measure the ceilings that the machine reaches: matmul and copy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

from handlers.engines import DTYPES

MIN_CALLS = 20
MIN_WARM_UPS = 3
# The GPU's clock rises during the first quarter of a point's time.
WARM_UP_SHARE = 0.25


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile (share: 0 to 1), interpolated between the two nearest ranks as numpy does it."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def times_ms(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of each call, after a warm-up: MIN_CALLS calls or more, in about `seconds` altogether.

    On a GPU calls are queued without waiting, and each is timed by CUDA events around it.
    """
    calls = max(MIN_CALLS, math.ceil(seconds / max(_warm_up(call, device, seconds), 1e-6)))
    return _events_ms(call, calls) if device.type == "cuda" else [_once(call, device) * 1e3 for _ in range(calls)]


def _warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Warm up. Returns the seconds of the last call."""
    started, done = time.perf_counter(), 0
    while True:
        last = _once(call, device)
        done += 1
        if done >= MIN_WARM_UPS and time.perf_counter() - started >= WARM_UP_SHARE * seconds:
            return last


def _once(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _events_ms(call: Callable[[], object], calls: int) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def matmul_tflops(device: torch.device, precision: str, seconds: float) -> float:
    """TFLOP/s of a matmul of random square matrices: 8192 x 8192, on a CPU 512 x 512. fp32 without TF32; fp8 is e4m3.

    The numbers are random: zeros use less power, so that a GPU would run at a higher clock than with a network.
    Raises whatever PyTorch raises if it cannot multiply fp8 here.
    """
    side = 8192 if device.type == "cuda" else 512
    return 2 * side**3 / (product_ms(device, precision, (side, side, side), seconds) * 1e-3) / 1e12


def product_ms(device: torch.device, precision: str, shape: tuple[int, int, int], seconds: float) -> float:
    """Median milliseconds of x @ W.T by PyTorch alone: x (T, K), W (O, K), as in a linear layer.

    shape: (T, K, O). For precisions and errors see matmul_tflops.
    """
    rows, depth, columns = shape
    torch.backends.cuda.matmul.allow_tf32 = False
    x, weight = (torch.randn(size, depth, device=device) for size in (rows, columns))
    multiply = _fp8_product(x, weight) if precision == "fp8" else _product(x, weight, DTYPES[precision])
    return quantile(times_ms(multiply, device, seconds), 0.5)


def _product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    x, weight = x.to(dtype), weight.to(dtype)
    out = x.new_empty(len(x), len(weight))
    return lambda: torch.mm(x, weight.t(), out=out)


def _fp8_product(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    """With one scale of 1 per matrix, fp16 output, and fast accumulation (in the tensor cores' own precision)."""
    x, weight = (part.to(torch.float8_e4m3fn) for part in (x, weight))
    one = torch.ones((), device=x.device)
    return lambda: torch._scaled_mm(
        x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float16, use_fast_accum=True
    )


def copy_tb_per_s(device: torch.device, seconds: float) -> float:
    """TB/s of a copy within device memory, counting bytes read and bytes written."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = times_ms(lambda: target.copy_(source), device, seconds)
    return 2 * size / (quantile(spent, 0.5) * 1e-3) / 1e12
