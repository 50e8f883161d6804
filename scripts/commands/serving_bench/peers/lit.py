"""LitServe, with the network in plain PyTorch."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving_bench.archives import Archive
from serving_bench.generator import Load
from serving_bench.peers import common_objection, missing
from serving_bench.peers.processes import Program, program

NAME = "litserve"
WHAT = "LitServe with transformers' network, fp16 on a GPU (pip install litserve)"
CONTENT_TYPE = "application/json"
SERVER = Path(__file__).with_name("lit_server.py")


def objection(archive: Archive) -> str | None:
    """Why it cannot run here, or None."""
    return common_objection(archive) or missing("litserve")


def request(body: bytes, load: Load) -> bytes:
    """The body in base64, in JSON."""
    return json.dumps({"body": base64.b64encode(body).decode()}).encode()


@contextlib.contextmanager
def served(
    archive: Archive,
    unpacked: Path,
    load: Load,
    workers: int,
    batch_size: int,
    delay_ms: int,
    gpus: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """Run LitServe with `workers` workers per GPU. load: as `request` makes it."""
    job = {
        "folder": str(unpacked),
        "kind": archive.kind,
        "handler": archive.handler,
        "workers": workers,
        "batch_size": batch_size,
        "delay_s": delay_ms / 1000,
    }
    name = f"{NAME}-{archive.name}"
    with program(name, SERVER, job, "/predict", unpacked.parent, load, environment) as found:
        yield found
