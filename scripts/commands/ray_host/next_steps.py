"""What scripts/serve-ray prints when its models are ready: how to ask each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import request_examples
from server.addresses import ALL
from server.paths import ROOT


@dataclass(frozen=True)
class Served:
    """A model that is ready. file: its archive on this machine."""

    name: str
    version: str
    file: Path


def text(models: Sequence[Served], host: str, port: int, grpc_port: int | None = None) -> str:
    """Return the commands to type next.

    Args:
        models: in the order of the command line; the first one of a name is asked by a path without a version.
        host, port, grpc_port: at which requests are answered; host may stand for all addresses.
    """
    shown = _shown(host)
    url = f"http://{shown}:{port}"
    elsewhere = f" From other machines, name this one in place of {shown}." if host in ALL else ""
    grpc = f"  gRPC is answered at {shown}:{grpc_port}; docs/clients/grpc.md says how to ask\n" if grpc_port else ""
    return f"""
Serving until Ctrl-C.{elsewhere} In another terminal, from {ROOT}:

{_requests(models, url)}
  curl {url}/models
      names and versions
  curl {url}/models/{quote(models[0].name, safe="")}
      how a model runs: engine, precision and device, and why they were chosen
{grpc}"""


def _requests(models: Sequence[Served], url: str) -> str:
    """The command that asks each model, in the order of the command line."""
    lines, names = [], set()
    for model in models:
        path = f"/predictions/{quote(model.name, safe='')}"
        path += f"/{quote(model.version, safe='')}" if model.name in names else ""
        names.add(model.name)
        options = request_examples.of_archive(model.file)
        lines.append(f"  curl {options}{' ' * bool(options)}{url}{path}\n")
    return "".join(lines).rstrip("\n")


def _shown(host: str) -> str:
    """The host in a URL of this machine."""
    here = {ALL[0]: "127.0.0.1", ALL[1]: "::1"}.get(host, host)
    return f"[{here}]" if ":" in here else here
