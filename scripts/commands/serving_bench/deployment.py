"""A TorchServe to measure: started here on free ports, or one that runs already."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from torchserve import Client, Server, ServerError, config_on_free_ports

from serving_bench.archives import Archive
from serving_bench.load import Endpoint

START_TIMEOUT_S = 120
MOST_LOG_BYTES = 256 << 20
LOAD_TIMEOUT_S = 900  # engines may be built at load


@dataclass
class Deployment:
    """A TorchServe of its own, in a temporary folder, until the `with` block ends.

    settings: of config.properties, in place of the project's.
    """

    settings: Mapping[str, str]
    folder: Path = field(init=False)
    server: Server = field(init=False)

    def __enter__(self) -> Deployment:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-serving-"))
        self.store.mkdir()
        config = config_on_free_ports(self.folder / "config.properties", self.settings)
        self.server = Server(self.folder, config, self.store, [])
        try:
            self.server.start()
            self.server.wait({"TorchServe": _manages}, START_TIMEOUT_S, lambda _: None)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end(keep=isinstance(error, ServerError))

    def _end(self, keep: bool = False) -> None:
        self.server.stop()
        if not keep:  # an error may name the log that lies there
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def store(self) -> Path:
        return self.folder / "model_store"

    @property
    def client(self) -> Client:
        return self.server.client

    def endpoint(self, model: str) -> Endpoint:
        """Where a model answers, with a token that is valid for minutes."""
        return endpoint(self.client, model)

    def trim_log(self) -> None:
        """Empty the server's output if it has grown large: TorchServe writes several lines a request."""
        if self.server.log.stat().st_size > MOST_LOG_BYTES:
            os.truncate(self.server.log, 0)

    def register(self, archive: Archive, batch_size: int | None, delay_ms: int | None) -> None:
        """Register without workers. None leaves what the archive says. Raises ServerError."""
        link = self.store / f"{archive.name}.mar"
        if not link.exists():
            link.symlink_to(archive.file)
        query: dict[str, object] = {"url": link.name, "model_name": archive.name, "initial_workers": 0}
        query |= {"batch_size": batch_size} if batch_size is not None else {}
        query |= {"max_batch_delay": delay_ms} if delay_ms is not None else {}
        answer = self.client.manage("POST", "/models", query, timeout_s=LOAD_TIMEOUT_S)
        if answer.status != 200:
            raise ServerError(f"{archive.file.name} was not registered: {answer.status} {said(answer.json())}")

    def unregister(self, model: str) -> None:
        """Raises ServerError."""
        answer = self.client.manage("DELETE", f"/models/{model}")
        if answer.status != 200:
            raise ServerError(f"{model} was not unregistered: {answer.status} {said(answer.json())}")

    def scale(self, model: str, workers: int, tell: Callable[[str], None] = lambda _: None) -> None:
        """Raises ServerError."""
        self.client.scale(model, workers, LOAD_TIMEOUT_S, tell)

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
    headers = {"Authorization": f"Bearer {client.token('inference')}"}
    return Endpoint(f"{client.inference}/predictions/{model}", headers)


def said(content: Any) -> str:
    """The message of one of TorchServe's errors."""
    return str(content.get("message", "")) if isinstance(content, dict) else ""


def _manages(client: Client) -> bool:
    return client.manage("GET", "/models").status == 200
