"""What a run is to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving_bench.layouts import Layout
from serving_bench.peers import archive_kserve, archive_triton, lit, nv_triton, ray_serve, stock
from serving_bench.peers.needs import Interpreter

PEERS: Mapping[str, Any] = {
    module.NAME: module for module in (stock, lit, nv_triton, archive_triton, archive_kserve, ray_serve)
}


@dataclass(frozen=True)
class Plan:
    """What to measure.

    batch_sizes, delays_ms: None among them stands for what the archive says. rates: of the open loop, in requests/s
    ("500"), or as a share of what the closed loop reached ("70%"). interpreters: of peers; this one for others.
    no_engine: why the engines are not measured alone; None if they are.
    """

    workers: Sequence[int]
    clients: Sequence[int]
    batch_sizes: Sequence[int | None]
    delays_ms: Sequence[int | None]
    rates: Sequence[str]
    noop: bool = True
    peers: Sequence[str] = ()
    interpreters: Mapping[str, Interpreter] = field(default_factory=dict)
    no_engine: str | None = "it was not asked for"


def without_programs(plan: Plan) -> Plan:
    """Return the plan without peers that are programs of their own: TorchServe's servers do not matter to them."""
    return replace(plan, peers=[peer for peer in plan.peers if peer == stock.NAME])


def per_gpu(plan: Plan, gpus: int) -> Plan:
    """The plan with workers and clients for so many GPUs."""
    return replace(
        plan, workers=[count * gpus for count in plan.workers], clients=[count * gpus for count in plan.clients]
    )


def why_not_on(peer: str, layout: Layout) -> str | None:
    """Why a peer cannot be measured on that many GPUs, or None."""
    is_fit = PEERS[peer].ON_SEVERAL_GPUS or layout.factor == 1
    return None if is_fit else f"it is measured on one GPU only, not on {layout.factor}"
