"""A TorchServe to measure, started on free ports in a temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
from server.client import Client, Report, refusal, silent
from server.config import config_on_free_ports
from server.errors import ServerError
from server.process import Server
from server.tokens import bearer

from serving_bench import prometheus
from serving_bench.archives import Archive
from serving_bench.generator import Endpoint

START_TIMEOUT_S = 120
MOST_LOG_BYTES = 256 << 20
UNREGISTER_TIMEOUT_S = 20
LOAD_TIMEOUT_S = 900  # TensorRT may build a plan at load
_GPU = re.compile(r"gpuId::(\d+)")


@dataclass
class TemporaryServer:
    """Runs until the `with` block ends.

    settings: for config.properties, in place of the project's. environment: variables besides this process's own.
    """

    settings: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = field(init=False)
    server: Server = field(init=False)

    def __enter__(self) -> TemporaryServer:
        self.start()
        try:
            self.wait()
        except BaseException:
            self._end()
            raise
        return self

    def start(self) -> None:
        """Start it in the background. Raises ServerError if that fails, and leaves nothing behind then."""
        self.folder = Path(tempfile.mkdtemp(prefix="bench-serving-"))
        self.store.mkdir()
        config = config_on_free_ports(self.folder / "config.properties", self.settings)
        self.server = Server(self.folder, config, self.store, [], self.environment)
        try:
            self.server.start()
        except BaseException:
            self._end()
            raise

    def wait(self) -> None:
        """Wait until it can be managed. Raises ServerError."""
        self.server.wait({"TorchServe": _manages}, START_TIMEOUT_S, silent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end(keep=isinstance(error, ServerError))

    def _end(self, keep: bool = False) -> None:
        self.server.stop()
        if not keep:  # a ServerError's message names the log in this folder
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def store(self) -> Path:
        """The folder of the archives."""
        return self.folder / "model_store"

    @property
    def client(self) -> Client:
        """What asks and manages the server."""
        return self.server.client

    def endpoint(self, model: str) -> Endpoint:
        """Where a model answers, with a valid token."""
        return endpoint(self.client, model)

    def trim_log(self) -> None:
        """Empty the server's output if it has grown large: TorchServe writes several lines per request."""
        if self.server.log.stat().st_size > MOST_LOG_BYTES:
            os.truncate(self.server.log, 0)

    def register(self, archive: Archive, batch_size: int | None, delay_ms: int | None) -> None:
        """Register an archive without workers. None: as the archive says. Raises ServerError."""
        link = self.store / f"{archive.name}.mar"
        if not link.exists():
            link.symlink_to(archive.file)
        query: dict[str, object] = {"url": link.name, "initial_workers": 0}
        query |= {"batch_size": batch_size} if batch_size is not None else {}
        query |= {"max_batch_delay": delay_ms} if delay_ms is not None else {}
        self.client.register(archive.name, query, LOAD_TIMEOUT_S)

    def unregister(self, model: str) -> None:
        """Unregister a model; 404 means that it is gone. Raises ServerError.

        TorchServe answers 500 now and then while the model's last batch ends. So it is asked again for some seconds.
        """
        deadline = time.monotonic() + UNREGISTER_TIMEOUT_S
        answer = self.client.manage("DELETE", f"/models/{model}")
        while answer.status not in (200, 404) and time.monotonic() < deadline:
            time.sleep(0.5)
            answer = self.client.manage("DELETE", f"/models/{model}")
        if answer.status not in (200, 404):
            raise ServerError(f"{model} was not unregistered: {refusal(answer)}")

    def scale(self, model: str, workers: int, report: Report = silent) -> None:
        """Have `workers` workers, and wait until they are ready. Raises ServerError."""
        self.client.scale(model, workers, LOAD_TIMEOUT_S, report)

    def workers_per_gpu(self, model: str, devices: Sequence[int] | None) -> list[int] | None:
        """Workers on each GPU of `devices`, which are all that the server may see; None if it does not say.

        TorchServe names each worker's GPU by its position among those that it sees, beside what nvidia-smi said.
        """
        if devices is None:
            return None
        workers = self.client.describe(model)["workers"]
        if len(devices) == 1:
            return [sum(bool(worker.get("gpu")) for worker in workers)]
        found = [_GPU.search(str(worker.get("gpuUsage"))) for worker in workers]
        if None in found:
            return None
        counts = Counter(int(match[1]) for match in found if match)
        return [counts[position] for position in range(len(devices))]

    def metrics(self, model: str) -> dict[str, float]:
        """A model's counters, gauges and histograms, by name."""
        return prometheus.of_model(self.client.metrics(), model)

    def groups(self) -> dict[str, list[psutil.Process]]:
        """The server's processes on this machine, by what they are."""
        process = self.server.process
        root = psutil.Process(process.pid) if process is not None else None
        return grouped([root, *root.children(recursive=True)]) if root is not None else {}


def grouped(processes: list[psutil.Process]) -> dict[str, list[psutil.Process]]:
    """TorchServe's processes: "java", "workers", and "other" (its wrapper, its collector of metrics)."""
    found: dict[str, list[psutil.Process]] = {"java": [], "workers": [], "other": []}
    for process in processes:
        try:
            name, line = process.name(), " ".join(process.cmdline())
        except psutil.Error:  # it has ended meanwhile
            continue
        kind = "java" if name == "java" else "workers" if "model_service_worker" in line else "other"
        found[kind].append(process)
    return found


def endpoint(client: Client, model: str) -> Endpoint:
    """Where a model of that TorchServe answers, with a valid token."""
    return Endpoint(f"{client.inference}/predictions/{model}", bearer(client.token("inference")))


def _manages(client: Client) -> bool:
    return client.manage("GET", "/models").status == 200
