"""LitServe, with the network in plain PyTorch."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from serving_bench.generator import Load
from serving_bench.peers import Start, network_objection, unpack
from serving_bench.peers.needs import Needs
from serving_bench.peers.processes import Program, program, with_job

NAME = "litserve"
WHAT = "LitServe with transformers' network, fp16 on a GPU"
NEEDS = Needs(
    "litserve",
    "litserve",
    requirements=Path(__file__).resolve().with_name("lit_requirements.txt"),
    environment="litserve",
)
SAME_ARCHIVE = False
ON_SEVERAL_GPUS = False
SERVER = Path(__file__).with_name("lit_server.py")
objection = network_objection


def translated(load: Load) -> Load:
    """The bodies in base64, in JSON."""
    bodies = [json.dumps({"body": base64.b64encode(body).decode()}).encode() for body in load.bodies]
    return Load(load.name, bodies, {"Content-Type": "application/json"}, load.unit, load.items)


@contextlib.contextmanager
def served(start: Start) -> Iterator[Program]:
    """Run LitServe with so many workers per GPU."""
    job = {
        "folder": str(unpack(start.archive, start.folder)),
        "kind": start.archive.kind,
        "handler": start.archive.handler,
        "workers": start.workers,
        "batch_size": start.batch_size,
        "delay_s": start.delay_ms / 1000,
    }
    with program(start, with_job(start, SERVER, job), "/predict") as found:
        yield found
