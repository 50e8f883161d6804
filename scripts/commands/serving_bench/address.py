"""A server that runs already, at an address."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
from server.client import Client
from server.errors import ServerError

from serving_bench import prometheus
from serving_bench.generator import Endpoint
from serving_bench.measure import Setting
from serving_bench.resource_usage import Groups
from serving_bench.temporary_server import LOAD_TIMEOUT_S, grouped

HERE = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class RunningServer:
    """A server at `url`. client: manages it, if it is a TorchServe of this machine."""

    url: str
    client: Client | None = None
    kind: str = "address"

    @property
    def name(self) -> str:
        return self.model or self.url

    @property
    def model(self) -> str | None:
        """The NAME in /predictions/NAME; None if the address is another one."""
        found = re.fullmatch(r"/predictions/([^/]+)(/.*)?", urlsplit(self.url).path)
        return found[1] if found else None

    def endpoint(self) -> Endpoint:
        headers = {"Authorization": f"Bearer {self.client.token('inference')}"} if self.client else {}
        return Endpoint(self.url, headers)

    def groups(self) -> Groups:
        """The processes of a TorchServe on this machine: its Java and the children of that; {} for other servers."""
        if self.client is None or self.model is None or urlsplit(self.url).hostname not in HERE:
            return {}
        pids = [int(worker["pid"]) for worker in self.client.describe(self.model)["workers"]]
        with contextlib.suppress(psutil.Error, IndexError):
            java = psutil.Process(pids[0]).parent()
            return grouped([java, *java.children(recursive=True)]) if java is not None else {}
        return {}

    def metrics(self) -> Mapping[str, float]:
        with contextlib.suppress(OSError):
            if self.client is not None and self.model is not None:
                return prometheus.of_model(self.client.metrics(), self.model)
        return {}

    def scale(self, workers: int | None) -> Setting:
        """Have `workers` workers, unless that is None. Returns how the model is served. Raises ServerError."""
        if self.client is None or self.model is None:
            if workers is not None:
                raise ServerError(
                    "--workers needs a TorchServe that --folder and --ts-config find, at /predictions/NAME"
                )
            return Setting()
        if workers is not None:
            self.client.scale(self.model, workers, LOAD_TIMEOUT_S)
        described = self.client.describe(self.model)
        return Setting(len(described["workers"]), described.get("batchSize"), described.get("maxBatchDelay"))


def find(url: str, client: Client) -> RunningServer:
    """The server at `url`; `client` manages it if it has the same address and there is a key file.

    Raises ValueError for an address without http://.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"--address {url}; wanted: http://HOST:PORT/predictions/NAME, or any other http address")
    same = urlsplit(client.inference)
    reachable = (parts.hostname, parts.port) == (same.hostname, same.port) and (
        client.folder / "key_file.json"
    ).is_file()
    return RunningServer(url, client if reachable else None)
