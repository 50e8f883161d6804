"""Several TorchServes that serve the same models, as if they were one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import psutil
from server.client import Client, Report, silent
from server.config import free_addresses

from serving_bench import layouts
from serving_bench.archives import Archive
from serving_bench.generator import Endpoint, together
from serving_bench.layouts import Layout
from serving_bench.temporary_server import TemporaryServer

GAUGE = "HandlerTime"  # of the last batch; all other metrics that are read here count, and can be summed


class Fleet:
    """The TorchServes of a layout, each with its share of the GPUs and of the workers.

    They run until the `with` block ends. settings: for config.properties. environment: for the
    servers, beside the GPUs that they may see.
    """

    def __init__(self, layout: Layout, settings: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.layout = layout
        addresses = free_addresses(layout.servers)  # all at once: none is given to two servers
        self.servers = [
            TemporaryServer(
                {**at, **_settings(devices), **settings}, {**environment, **layouts.environment_of(devices)}
            )
            for at, devices in zip(addresses, layout.shares, strict=True)
        ]
        self.started: list[TemporaryServer] = []

    def __enter__(self) -> Fleet:
        try:
            for server in self.servers:
                server.start()
                self.started.append(server)
            for server in self.servers:
                server.wait()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor(len(self.servers)) as pool:  # each takes seconds to end
            for ended in [pool.submit(server.__exit__, kind, error, at) for server in self.started]:
                ended.result()

    @property
    def folder(self) -> Path:
        """A folder for files of the measurement: the first server's."""
        return self.servers[0].folder

    @property
    def store(self) -> Path:
        """The first server's folder of archives."""
        return self.servers[0].store

    @property
    def client(self) -> Client:
        """What asks the first server; the others are served in the same way."""
        return self.servers[0].client

    def endpoint(self, model: str) -> Endpoint:
        """Where a model answers: at each server."""
        return together([server.endpoint(model) for server in self.servers])

    def trim_log(self) -> None:
        """Empty the servers' outputs if they have grown large."""
        for server in self.servers:
            server.trim_log()

    def register(self, archive: Archive, batch_size: int | None, delay_ms: int | None) -> None:
        """Register an archive at each server, without workers. Raises ServerError."""
        for server in self.servers:
            server.register(archive, batch_size, delay_ms)

    def unregister(self, model: str) -> None:
        """Unregister a model at each server. Raises ServerError."""
        for server in self.servers:
            server.unregister(model)

    def scale(self, model: str, workers: int, report: Report = silent) -> None:
        """Have `workers` workers on all servers together, and wait until they are ready. Raises ServerError.

        All servers load at the same time.
        """
        shares = layouts.divided(workers, len(self.servers))
        if len(self.servers) > 1:
            for server, share in zip(self.servers, shares, strict=True):
                server.client.set_workers(model, share)
        for server, share in zip(self.servers, shares, strict=True):
            server.scale(model, share, report)

    def workers_per_gpu(self, model: str) -> list[int] | None:
        """Workers on each GPU of the layout; None if a server does not say it, or if no GPUs were asked for."""
        found = [server.workers_per_gpu(model, devices) for server, devices in _pairs(self)]
        return None if None in found else [count for counts in found for count in counts or ()]

    def groups(self) -> dict[str, list[psutil.Process]]:
        """All servers' processes on this machine, by what they are."""
        found: dict[str, list[psutil.Process]] = {}
        for server in self.servers:
            for kind, processes in server.groups().items():
                found.setdefault(kind, []).extend(processes)
        return found

    def metrics(self, model: str) -> dict[str, float]:
        """A model's counters and histograms, summed over the servers."""
        return summed([server.metrics(model) for server in self.servers])


def summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sum of each metric; the mean of the gauge, over the servers that have it."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    if GAUGE in found:
        found[GAUGE] /= sum(GAUGE in part for part in parts)
    return found


def _settings(devices: tuple[int, ...] | None) -> dict[str, str]:
    return {} if devices is None else {"number_of_gpu": str(len(devices))}


def _pairs(fleet: Fleet) -> list[tuple[TemporaryServer, tuple[int, ...] | None]]:
    return list(zip(fleet.servers, fleet.layout.shares, strict=True))
