"""NVIDIA Triton through nvidia-pytriton, with the network in plain PyTorch."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from serving_bench.generator import Load
from serving_bench.peers import Start, archive_triton, network_objection, unpack
from serving_bench.peers.processes import Program, program, with_job

NAME = "pytriton"
WHAT = "a Python function behind NVIDIA Triton, with transformers' network, fp16 on a GPU"
NEEDS = archive_triton.NEEDS
SAME_ARCHIVE = False
ON_SEVERAL_GPUS = False
SERVER = Path(__file__).with_name("nv_triton_server.py")
objection = network_objection


def translated(load: Load) -> Load:
    """The bodies in base64, in JSON of the Open Inference Protocol."""
    bodies = []
    for body in load.bodies:
        tensor = {"name": "body", "shape": [1, 1], "datatype": "BYTES", "data": [base64.b64encode(body).decode()]}
        bodies.append(json.dumps({"inputs": [tensor]}).encode())
    return Load(load.name, bodies, {"Content-Type": "application/json"}, load.unit, load.items)


@contextlib.contextmanager
def served(start: Start) -> Iterator[Program]:
    """Run Triton with so many instances of the function."""
    job = {
        "folder": str(unpack(start.archive, start.folder)),
        "kind": start.archive.kind,
        "handler": start.archive.handler,
        "workers": start.workers,
        "batch_size": start.batch_size,
        "delay_us": start.delay_ms * 1000,
    }
    with program(start, with_job(start, SERVER, job), "/v2/models/model/infer") as found:
        yield found
