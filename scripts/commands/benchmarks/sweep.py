"""Every engine at every point of a workload: checked first, then timed, one row each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from archive.parity import Array, relative_errors
from benchmarks import clocks, runners
from benchmarks.layers import Layer, item_bytes, roofline_ms, total_flops
from benchmarks.points import Point, point_of, spoken
from handlers.engines import EngineSpec, LoadedEngine

Row = dict[str, Any]

REASON_LENGTH = 300  # of a library's words for why something was skipped


class Workload(Protocol):
    """A model, what it is fed with, and what it should answer."""

    @property
    def model(self) -> str: ...
    @property
    def unit(self) -> str: ...

    def inputs(self, point: Point, precision: str, engine: LoadedEngine) -> Sequence[Any]:
        """What engine.run takes, on the device: one call after another makes the point."""
        ...

    def reference(self, point: Point) -> Array:
        """(N, K) fp32 outputs of all `inputs`."""
        ...

    def layers_at(self, point: Point) -> list[Layer]:
        """Of the point in one call."""
        ...


@dataclass(frozen=True)
class Ceilings:
    """matmul_tflops: by precision, where it can be had. copy_tb_per_s: read and written bytes together."""

    matmul_tflops: dict[str, float]
    copy_tb_per_s: float


@dataclass
class Sweep:
    """All that a run has found so far; `save` is called after every point, `say` with every line for a person."""

    workload: Workload
    spec: EngineSpec
    conditions: dict[str, object]
    ceilings: Ceilings
    seconds: float
    save: Callable[[Sweep], None]
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    details: dict[str, dict[str, object]] = field(default_factory=dict)
    kernels: list[Row] = field(default_factory=list)
    free_before: int = 0  # bytes of the device's memory, before the engine at hand was loaded

    @property
    def device(self) -> torch.device:
        return self.spec.device

    def run(self, name: str, points: Sequence[Point]) -> None:
        """Time one engine. What cannot run is said, kept in `skipped`, and passed over."""
        started = time.monotonic()
        free(self.device)
        self.free_before = free_bytes(self.device)
        try:
            engine = self.load(name)
        except Exception as error:  # whatever a library raises; the other engines shall still be timed
            self.skip(name, None, error)
            return
        self.details[name] = engine.details
        self.say(f"{name}: loaded in {time.monotonic() - started:.1f} s")
        for point in points:
            self._try(name, engine, point)
        del engine
        free(self.device)

    def load(self, name: str) -> LoadedEngine:
        """Raises ValueError where there is nothing to set its figures against, and whatever a library raises."""
        precision = runners.split_name(name)[1]
        if precision not in self.ceilings.matmul_tflops:
            raise ValueError(f"PyTorch cannot multiply {precision} here, so there is no ceiling to set it against")
        return runners.load(name, self.spec)

    def skip(self, name: str, point: Point | None, error: Exception) -> None:
        """Say and keep why an engine, or one point of it, was not timed."""
        said = str(error).strip().partition("; engine: auto")[0]  # advice for those who serve
        reason = " ".join((said or type(error).__name__).split())[:REASON_LENGTH]
        batch, length, mix = point or (None, None, None)
        self.skipped.append({"engine": name, "batch": batch, "length": length, "mix": mix, "reason": reason})
        self.say(f"{name}{f' {spoken(point)}' if point else ''}: SKIPPED, {reason}")
        self.save(self)

    def _try(self, name: str, engine: LoadedEngine, point: Point) -> None:
        try:
            row = self._measure(name, engine, point)
        except Exception as error:  # too little memory for this batch, say
            self.skip(name, point, error)
            free(self.device)
            return
        self.rows.append(row)
        self.say(line_of(row, self.workload.unit))
        self.save(self)

    def _measure(self, name: str, engine: LoadedEngine, point: Point) -> Row:
        precision = runners.split_name(name)[1]
        call = calls(engine, self.workload.inputs(point, precision, engine))
        error = checked_error(torch.cat(call()), self.workload.reference(point))
        if self.device.type == "cuda":  # not before: the check above needs memory of its own
            torch.cuda.empty_cache()
        spent = clocks.times_ms(call, self.device, self.seconds)
        # What the allocator has kept by now is what the point needed at most.
        taken = self.free_before - free_bytes(self.device)
        peak = taken / 1e6 if self.device.type == "cuda" else None
        return self._row(name, precision, point, spent) | {"peak_mb": rounded(peak), "relative_error": error}

    def _row(self, name: str, precision: str, point: Point, spent: Sequence[float]) -> Row:
        p50, layers = clocks.quantile(spent, 0.5), self.workload.layers_at(point)
        matmul, copy = self.ceilings.matmul_tflops[precision], self.ceilings.copy_tb_per_s
        tflops = total_flops(layers) / (p50 * 1e-3) / 1e12
        least = roofline_ms(layers, item_bytes(precision), matmul, copy)
        return {
            "model": self.workload.model,
            "engine": name.rpartition("-")[0],
            "precision": precision,
            "batch": point.batch,
            "length": point.length,
            "mix": point.mix,
            "ms_p50": rounded(p50),
            "ms_p90": rounded(clocks.quantile(spent, 0.9)),
            "items_per_s": rounded(point.batch / (p50 * 1e-3)),
            "tflops": rounded(tflops),
            **{key: self.conditions[key] for key in ("gpu", "torch", "tensorrt", "commit")},
            "share_of_matmul": rounded(tflops / matmul),
            "share_of_memory_roofline": rounded(least / p50),
        }


def calls(engine: LoadedEngine, inputs: Sequence[Any]) -> Callable[[], list[torch.Tensor]]:
    """What makes a point: the engine run on each of the inputs."""
    return lambda: [engine.run(part) for part in inputs]


def checked_error(outputs: torch.Tensor, reference: Array) -> float:
    """The worst row's ||outputs - reference|| / ||reference||. Raises ValueError where that says nothing."""
    found = outputs.float().cpu().numpy()
    if found.shape != reference.shape:
        raise ValueError(f"outputs of shape {found.shape} came; wanted: {reference.shape}")
    if not np.isfinite(found).all():
        raise ValueError("outputs are not finite, and such a network runs at another speed")
    return float(f"{relative_errors(found, reference).max():.3g}")


def rounded(value: float | None) -> float | None:
    """To six significant digits."""
    return None if value is None else float(f"{value:.6g}")


def free_bytes(device: torch.device) -> int:
    """Of the device's memory, for whoever asks; 0 for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def free(device: torch.device) -> None:
    """Give back what the last engine held."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was freed in a stream's order goes back when that is waited for
        torch.cuda.empty_cache()


def line_of(row: Row, unit: str) -> str:
    """One row for a person at a terminal."""
    return (
        f"{row['engine']}-{row['precision']} {spoken(point_of(row))}: {row['ms_p50']:.3f} ms "
        f"(p90 {row['ms_p90']:.3f}), {row['items_per_s']:,.0f} {unit}, {row['tflops']:.1f} TFLOP/s, "
        f"{row['share_of_memory_roofline']:.0%} of roofline, error {row['relative_error']:.1e}"
    )
