"""What scripts/research/ray_ingress.py notes of its conditions, without Ray."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray_ingress
from ray_host import local, tunables
from serving_bench import archives
from serving_bench.archives import TEXTS
from serving_bench.generator import Endpoint


@pytest.mark.parametrize(
    ("servers", "value", "noted"), [("ray", "1", True), ("ray", "0", False), ("torchserve", "1", None)]
)
def test_haproxy_is_noted_as_it_was_while_ray_ran(
    servers: str, value: str, noted: bool | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(*_: object) -> str:
        os.environ[tunables.HA_PROXY] = value  # what starts Ray sets it, if nobody has
        return "logs"

    @contextlib.contextmanager
    def torchserve(*_: object) -> Iterator[Any]:
        yield ray_ingress.Served("TorchServe", Endpoint("http://h", {}), "h:1", "x")

    monkeypatch.setenv(tunables.HA_PROXY, "")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "run", lambda *_: None)
    monkeypatch.setattr(local, "stop", lambda: os.environ.pop(tunables.HA_PROXY))
    monkeypatch.setitem(ray_ingress.SERVERS, "torchserve", torchserve)
    monkeypatch.setattr(archives, "read", lambda path: SimpleNamespace(kind=TEXTS, file=Path(path)))
    monkeypatch.setattr(ray_ingress, "rounds", lambda *_: iter([{"failed": False}]))
    monkeypatch.setattr(ray_ingress.importlib.metadata, "version", lambda name: "1")  # type: ignore[attr-defined]
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["ray_ingress", "x.mar", "--servers", servers, "--out", str(out)])
    assert ray_ingress.main() == 0
    assert json.loads(out.read_text())["conditions"]["haproxy"] is noted
