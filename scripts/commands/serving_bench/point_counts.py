"""How many points a plan has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving_bench.archives import Archive
from serving_bench.generator import Load
from serving_bench.layouts import Layout
from serving_bench.plan import PEERS, Plan, per_gpu, why_not_on, without_programs

Loads = Sequence[tuple[Archive, Load]]


def of_layouts(
    layouts: Sequence[Layout],
    plan: Plan,
    loads: Loads,
    peers_done: Iterable[tuple[object, object]] = (),
    noops: Iterable[str] = (),
) -> int:
    """Return the points of all layouts, if none fails, and of the engines alone.

    peers_done: GPUs and MPS of layouts in which the peers have been measured. noops: names of loads whose no-op has
    been measured on the first layout's GPUs and servers.
    """
    total, before = 0, layouts[0] if layouts else None
    peers, known = set(peers_done), set(noops)
    for layout in layouts:
        if before and (layout.devices, layout.servers) != (before.devices, before.servers):  # as Bench.use has it
            known = set()
        own = per_gpu(plan, layout.factor)
        own = without_programs(own) if (layout.devices, layout.mps) in peers else own
        total += of_layout(layout, own, loads, known)
        peers.add((layout.devices, layout.mps))
        known |= {load.name for _, load in loads}
        before = layout
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
