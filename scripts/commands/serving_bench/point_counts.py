"""How many points a plan has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving_bench.archives import Archive
from serving_bench.generator import Load
from serving_bench.layouts import Layout
from serving_bench.plan import PEERS, Plan, per_gpu, why_not_on, without_programs

Loads = Sequence[tuple[Archive, Load]]


def of_layouts(layouts: Sequence[Layout], plan: Plan, loads: Loads) -> int:
    """Return the points of all layouts, if none fails, and of the engines alone."""
    total, before = 0, None
    peers_done, noops = set(), set[str]()
    for layout in layouts:
        if (layout.devices, layout.servers) != before:  # as Bench.use has it
            noops = set()
        before = layout.devices, layout.servers
        own = per_gpu(plan, layout.factor)
        own = without_programs(own) if (layout.devices, layout.mps) in peers_done else own
        peers_done.add((layout.devices, layout.mps))
        total += of_layout(layout, own, loads, noops)
        noops |= {load.name for _, load in loads}
    return total + (0 if plan.no_engine else len(loads))


def of_layout(layout: Layout, plan: Plan, loads: Loads, noops: Iterable[str]) -> int:
    """Return the points of one layout. noops: names of loads whose no-op has been measured."""
    settings = len(plan.batch_sizes) * len(plan.delays_ms)
    new = {load.name for _, load in loads} - set(noops)
    peers = sum(of_peer(peer, layout, plan, archive) for archive, _ in loads for peer in plan.peers)
    return len(new) * of_noop(plan) + settings * (len(loads) * of_subject(plan) + peers)


def of_subject(plan: Plan) -> int:
    """Return the points of one archive at one batch size and delay."""
    return len(plan.workers) * (len(plan.clients) + len(plan.rates))


def of_noop(plan: Plan) -> int:
    """Return the points of one no-op."""
    return len(plan.clients) if plan.noop else 0


def of_peer(peer: str, layout: Layout, plan: Plan, archive: Archive) -> int:
    """Return the points of a peer at one batch size and delay; 0 if it cannot serve the archive."""
    return 0 if PEERS[peer].objection(archive) or why_not_on(peer, layout) else of_subject(plan)
