"""Where the time of one point goes: the sum of each kernel, the least time that each part of a layer could take, and
each matrix product as PyTorch alone computes it, under the same steady load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import engine_loading, timing
from benchmarks.layers import Layer, encoder_layer, encoder_products, item_bytes
from benchmarks.points import Point, lengths_of, spoken
from benchmarks.sweep import Ceilings, Row, Sweep, calls, free, rounded
from benchmarks.texts import TextWorkload

RUNS = 5
SHOWN = 20
NAME_WIDTH = 72


def measure(sweep: Sweep, workload: TextWorkload, name: str, point: Point) -> None:
    """Profile one engine at one point, into sweep.kernels. An engine that cannot run is skipped, with the reason."""
    try:
        engine = sweep.load(name)
        call = calls(engine, workload.inputs(point, engine_loading.split_name(name)[1], engine))
        spent = timing.quantile(timing.times_ms(call, sweep.device, sweep.seconds), 0.5)
        kernels = kernel_times(call, sweep.device, workload.config.num_hidden_layers)
    except Exception as error:  # whatever a library raises: the other points are still profiled
        sweep.skip(name, point, error)
        return
    finally:
        free(sweep.device)
    engine_name, precision = engine_loading.split_name(name)
    products = product_times(workload, point, precision, sweep)
    sweep.kernels.append(
        {
            "model": workload.model,
            "engine": engine_name,
            "precision": precision,
            **point._asdict(),
            "ms_p50": rounded(spent),
            "ms_in_kernels": rounded(sum(kernel["us"] for kernel in kernels) / 1e3),
            "kernels": kernels,
            "floors": floors(workload, point, precision, sweep.ceilings),
            "products": products,
        }
    )
    sweep.show(table(sweep.kernels[-1]))
    sweep.save(sweep)


def kernel_times(call: Callable[[], object], device: torch.device, layers: int) -> list[Row]:
    """Microseconds per call of each kernel (CPU: each operation), longest first. `call` is warmed up already."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        for _ in range(RUNS):
            call()
        if cuda:
            torch.cuda.synchronize(device)
    wanted = "CUDA" if cuda else "CPU"
    # Annotations span kernels, and would count them twice.
    timed = [
        (_microseconds(event, cuda) / RUNS, event)
        for event in found.key_averages()
        if event.device_type.name == wanted and not getattr(event, "is_user_annotation", False)
    ]
    whole = sum(spent for spent, _ in timed)
    if not whole:
        raise ValueError("the profiler saw no kernel; another tool may hold the GPU's counters")
    return [
        {
            "name": event.key,
            "us": rounded(spent),
            "us_per_layer": rounded(spent / layers),
            "calls": rounded(event.count / RUNS),
            "share": rounded(spent / whole),
        }
        for spent, event in sorted(timed, key=lambda item: -item[0])
        if spent
    ]


def _microseconds(event: Any, cuda: bool) -> float:
    return float(event.self_device_time_total if cuda else event.self_cpu_time_total)


def floors(workload: TextWorkload, point: Point, precision: str, ceilings: Ceilings) -> list[Row]:
    """The least microseconds of each part of one layer, and what bounds it.

    The part "norms" is the time to read and write both norms once more, as kernels of their own do; the sum leaves it
    out, as if they were fused.
    """
    parts = _parts(workload.config, lengths_of(point))
    rows = [_floor(name, part, precision, ceilings) for name, part in parts.items()]
    least = sum(row["us_per_layer"] for row in rows if row["part"] != "norms")
    return [*rows, {"part": "sum without norms", "us_per_layer": rounded(least), "bound": None}]


def product_times(workload: TextWorkload, point: Point, precision: str, sweep: Sweep) -> list[Row]:
    """Microseconds of each matrix product of one layer alone, without bias, and their sum."""
    tokens = sum(lengths_of(point))
    shapes = {name: (tokens, *shape) for name, shape in encoder_products(workload.config).items()}
    times = {
        name: 1e3 * timing.product_ms(sweep.device, precision, shape, sweep.seconds) for name, shape in shapes.items()
    }
    return [{"part": name, "us": rounded(spent)} for name, spent in {**times, "sum": sum(times.values())}.items()]


def _parts(config: Any, lengths: tuple[int, ...]) -> dict[str, Layer]:
    norms = Layer(0, 2 * 2 * sum(lengths) * config.hidden_size, 0)
    return {**encoder_layer(config, lengths), "norms": norms}


def _floor(name: str, part: Layer, precision: str, ceilings: Ceilings) -> Row:
    matmul, copy = ceilings.matmul_tflops[precision], ceilings.copy_tb_per_s
    computing, moving = part.seconds(item_bytes(precision), matmul, copy)
    return {
        "part": name,
        "us_per_layer": rounded(max(computing, moving) * 1e6),
        "bound": "matmul" if computing > moving else "copy",
    }


def table(found: Row) -> str:
    """All lists as text for a terminal."""
    point = Point(found["batch"], found["length"], found["mix"])
    lines = [
        f"\n{found['engine']}-{found['precision']} {spoken(point)}: {found['ms_p50']:.3f} ms, of which "
        f"{found['ms_in_kernels']:.3f} ms in kernels (profiled apart)",
        f"{'us':>10} {'us/layer':>9} {'calls':>6} {'share':>6}  kernel",
        *(
            f"{row['us']:>10.1f} {row['us_per_layer']:>9.2f} {row['calls']:>6g} {row['share']:>6.1%}  "
            f"{row['name'][:NAME_WIDTH]}"
            for row in found["kernels"][:SHOWN]
        ),
        f"{'us/layer':>20}  floor",
        *(
            f"{row['us_per_layer']:>20.2f}  {row['part']}{' (' + row['bound'] + ')' if row['bound'] else ''}"
            for row in found["floors"]
        ),
        f"{'us/layer':>20}  product by itself",
        *(f"{row['us']:>20.2f}  {row['part']}" for row in found["products"]),
    ]
    return "\n".join(lines)
