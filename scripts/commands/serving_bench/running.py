"""A server that runs already, and was not started here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
from torchserve import Client, ServerError

from serving_bench import prometheus
from serving_bench.deployment import LOAD_TIMEOUT_S, grouped
from serving_bench.load import Endpoint
from serving_bench.measure import Setting
from serving_bench.watch import Groups

HERE = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Running:
    """A server at `url`. client: of its TorchServe, if that can be managed from here."""

    url: str
    client: Client | None = None
    kind: str = "address"

    @property
    def name(self) -> str:
        return self.model or self.url

    @property
    def model(self) -> str | None:
        """Of a TorchServe's /predictions/NAME."""
        found = re.fullmatch(r"/predictions/([^/]+)(/.*)?", urlsplit(self.url).path)
        return found[1] if found else None

    def endpoint(self) -> Endpoint:
        headers = {"Authorization": f"Bearer {self.client.token('inference')}"} if self.client else {}
        return Endpoint(self.url, headers)

    def groups(self) -> Groups:
        """Of a TorchServe on this machine: its Java and that one's children; nothing of others."""
        if self.client is None or self.model is None or urlsplit(self.url).hostname not in HERE:
            return {}
        pids = [int(worker["pid"]) for worker in self.client.describe(self.model)["workers"]]
        with contextlib.suppress(psutil.Error, IndexError):
            java = psutil.Process(pids[0]).parent()
            return grouped([java, *java.children(recursive=True)]) if java is not None else {}
        return {}

    def figures(self) -> Mapping[str, float]:
        with contextlib.suppress(OSError):
            if self.client is not None and self.model is not None:
                return prometheus.of_model(self.client.metrics(), self.model)
        return {}

    def scale(self, workers: int | None) -> Setting:
        """Have so many workers, if a number is given; how the model is served. Raises ServerError."""
        if self.client is None or self.model is None:
            if workers is not None:
                raise ServerError(
                    "--workers wants a TorchServe that --folder and --ts-config find, at /predictions/NAME"
                )
            return Setting()
        if workers is not None:
            self.client.scale(self.model, workers, LOAD_TIMEOUT_S)
        said = self.client.describe(self.model)
        return Setting(len(said["workers"]), said.get("batchSize"), said.get("maxBatchDelay"))


def find(url: str, client: Client) -> Running:
    """The server at `url`, managed through `client` if that one's address and key file are there.

    Raises ValueError for an address without http://.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"--address {url}; wanted: http://HOST:PORT/predictions/NAME, or any other http address")
    same = urlsplit(client.inference)
    reachable = (parts.hostname, parts.port) == (same.hostname, same.port) and (
        client.folder / "key_file.json"
    ).is_file()
    return Running(url, client if reachable else None)
