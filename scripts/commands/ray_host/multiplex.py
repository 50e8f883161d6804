"""Many models in few replicas: each replica holds some of them, and loads others when they are asked."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from handlers import HttpRequest, HttpResponse
from handlers.hosts import unpacking
from handlers.hosts.code_versions import refuse_other_version
from handlers.hosts.contents import ArchiveError
from handlers.serving import isolation
from ray_host import archives, unloaded
from ray_host.gone import ReplicaGoneError
from ray_host.options import ModelOptions
from ray_host.replica import Replica
from ray_host.shelf import Held, Shelf


@dataclass(frozen=True)
class Entry:
    """A model that a replica may load.

    Args:
        options: of the model.
        name, version: under which it is served.
        digest: that its archive has to have.
    """

    options: ModelOptions
    name: str
    version: str
    digest: str


class Multiplexed(Replica):
    """Answers HTTP requests for many models, of which the most recently asked ones are loaded.

    Attributes:
        most: models that are loaded at a time.
    """

    most = 1

    async def __init__(  # type: ignore[misc]
        self, entries: Mapping[str, Entry], device: str, wait_s: float, most_waiting: int
    ) -> None:
        """Load nothing. entries: by the key with which fronts ask; device: "cpu" or "cuda"; others: see Shelf."""
        self._entries, self._device = entries, device
        self._is_closing = False
        self._shelf = Shelf(self._check, self.fetch, wait_s, most_waiting)

    async def fetch(self, key: str) -> Held:
        """Return a model by Ray's cache; see `replica_class`."""
        raise NotImplementedError

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the response to one request. Raises ReplicaGoneError (ask another replica) and NotLoadedError."""
        key = serve.get_multiplexed_model_id()
        entry = self._entry(key)
        if unloaded.of_server(request):
            return unloaded.answer(request, entry.name)
        if unloaded.of_readiness(request, entry.name, entry.version):
            self._shelf.refuse_failed(key)
            return unloaded.answer(request, entry.name)
        waited_s = 0.0 if request.arrived is None else max(0.0, time.time() - request.arrived)
        async with self._shelf.lent(key, waited_s) as model:
            return await self._ask(model, request)

    async def describe_here(self, key: str) -> dict[str, Any]:
        """Return whether a model is loaded here, and how it runs. Loads nothing."""
        entry = self._entry(key)
        here = serve.get_replica_context().replica_id.unique_id
        told = {
            "replica": here,
            "host": ray.util.get_node_ip_address(),
            "process": os.getpid(),
            **self._shelf.state(key),
            "loadedModels": len(self._shelf.models),
            "mostModels": self.most,
        }
        known: dict[str, Any] = {"name": entry.name, "version": entry.version, "digest": entry.digest}
        if (model := self._shelf.model(key)) is not None:
            known |= {**model.model.describe(), "batchSize": model.batch_size}
        return {"model": known, "replica": told}

    async def check_health(self) -> None:
        """Raises RuntimeError if the GPU is lost: Ray Serve then starts another replica."""
        if not all(model.model.is_healthy for model in self._shelf.models):
            self._end()
            raise RuntimeError("the replica's GPU is lost")

    async def __del__(self) -> None:
        """Take no more requests. Ray awaits this, and then drops the models."""
        if hasattr(self, "_shelf"):
            self._is_closing = True
            await self._shelf.close()

    def _entry(self, key: str) -> Entry:
        """What to load. Raises ReplicaGoneError: while models are added, a replica from before does not know them."""
        if self._is_closing or key not in self._entries:
            raise ReplicaGoneError("the replica is ending, or has not this model")
        return self._entries[key]

    async def _loaded(self, key: str) -> Held:
        entry, started = self._entries[key], time.monotonic()
        try:
            model = await self._load(entry.options, entry.digest)
        except Exception:
            await self._end_without_gpu()
            raise
        return self._shelf.put(key, model, time.monotonic() - started)

    async def _end_without_gpu(self) -> None:
        """End this process if the GPU is lost: no model would load any more. Raises ReplicaGoneError then."""
        try:
            await asyncio.to_thread(isolation.exit_if_gpu_lost)
        except SystemExit:
            self._end()
            raise ReplicaGoneError("the replica's GPU is lost") from None

    async def _check(self, key: str) -> None:
        """Raises ArchiveError for an archive that is not there, not the one of the digest, or damaged."""
        await asyncio.to_thread(_refuse_broken, self._entries[key])


def replica_class(number: int) -> type[Multiplexed]:
    """Return the class of replicas that hold so many models each. Ray pickles it with its number."""

    class Models(Multiplexed):
        most = number

        @serve.multiplexed(max_num_models_per_replica=number)  # type: ignore[untyped-decorator, unused-ignore]
        async def fetch(self, key: str) -> Held:
            return await self._loaded(key)

    return Models


def _refuse_broken(entry: Entry) -> None:
    """Raises ArchiveError, or OSError if there is no room to unpack the archive."""
    options = entry.options
    mar = archives.local(options.archive, entry.digest)
    try:
        with unpacking.archive_folder(mar, edited_settings=options.edited_settings) as (_, listed):
            if listed.digest != entry.digest:
                raise ArchiveError(f"{mar} has the content digest {listed.digest}, and {entry.digest} is wanted")
            refuse_other_version(listed, str(mar), allowed=options.allow_other_version)
    except ArchiveError:
        archives.forget(options.archive, mar)
        raise
