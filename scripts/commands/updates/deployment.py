"""Replace the version that serves a model by another one, without a lost request; undo all of it if a step fails."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.client import Client, Report, refusal
from server.errors import ServerError
from server.http import Answer
from server.logs import Logs

from updates import archive_file, comparison, draining, memory, samples
from updates.interrupts import Interrupts

POLL_S = 0.3
WARM_ROUNDS = 3
REQUESTS = "ts_inference_requests_total"


class NotUndone(ServerError):
    """A step of the way back failed too; the message says what is left to do."""


@dataclass(frozen=True)
class Wishes:
    """What to deploy, and how.

    name: of the model. file: the archive. store: the model store. sample_files: to compare with; none: made by kind.
    workers: of the new version; None: as many as the old one has. compare_by: comparison.ANSWERS or LABELS.
    accept_difference: a different answer is no reason to stop. keep_old: the old version stays beside the new one.
    ignore_memory: try although both do not fit. load_timeout_s, drain_timeout_s: the longest waits.
    """

    name: str
    file: Path
    store: Path
    sample_files: Sequence[Path] = ()
    workers: int | None = None
    compare_by: str = comparison.ANSWERS
    accept_difference: bool = False
    keep_old: bool = False
    ignore_memory: bool = False
    load_timeout_s: float = 900
    drain_timeout_s: float = 180


@dataclass
class Deployment:
    """One replacement; `run` does it. undo: what takes back the steps that were done, the last one first."""

    client: Client
    wishes: Wishes
    report: Report
    interrupts: Interrupts = field(default_factory=Interrupts)
    undo: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    named_by_us: int = 0  # requests of ours that named the old version

    def plan(self) -> None:
        """Look at the server and the archive, and change nothing. Raises ServerError if it cannot work."""
        wishes = self.wishes
        self.archive = archive_file.read(wishes.file)
        self.old = self.client.describe(wishes.name)
        self.old_version, self.new_version = str(self.old["modelVersion"]), self.archive.version
        self._refuse_versions()
        self.pids = [int(item["pid"]) for item in self.old["workers"] if item["status"] == "READY"]
        self.workers = wishes.workers or len(self.old["workers"])
        if not self.workers:
            raise ServerError(f"{wishes.name} has no workers; say how many the new version shall have: --workers N")
        self.samples = samples.of_files(wishes.sample_files) or samples.of_kind(self._about(self.old_version))
        self._refuse_memory()
        self.named_before = self._named()
        count = f"{len(self.samples)} samples" if self.samples else "no samples: its kind is unknown, see --sample"
        self._say(f"version {self.old_version} serves; {self.new_version} gets {self.workers} workers; {count}")

    def run(self) -> None:
        """Do it all. Raises ServerError (NotUndone among them), OSError or Interrupted; the server is then as before.

        NotUndone means that it is not.
        """
        try:
            for step in (
                self._place,
                self._register,
                self._load,
                self._warm,
                self._compare,
                self._switch,
                self._drain,
            ):
                self.interrupts.check()
                step()
        except BaseException:
            self.interrupts.shield()
            self._undo()
            raise
        self.interrupts.shield()
        self._remove_old()

    # --- the steps ---

    def _refuse_versions(self) -> None:
        name, new = self.wishes.name, self.new_version
        there = [str(item["modelVersion"]) for item in self.client.manage("GET", f"/models/{name}/all").json()]
        if new == self.old_version:
            raise ServerError(
                f"{name} {new} serves already, and TorchServe tells versions apart by the archive's own: package "
                "this one with another --model-version"
            )
        if new in there:
            raise ServerError(
                f"{name} {new} is registered already, and is not the default. If nobody asks for it, remove it: "
                f"scripts/deploy {name} --remove {new}"
            )

    def _refuse_memory(self) -> None:
        more = self.wishes.file.stat().st_size - self._size_of_old()
        if (short := memory.shortage(self.pids, self.workers, more)) and not self.wishes.ignore_memory:
            raise ServerError(f"{short}. Deploy with fewer --workers, scale the old version down, or --ignore-memory")

    def _size_of_old(self) -> int:
        with contextlib.suppress(OSError):
            return (self.wishes.store / Path(str(self.old["modelUrl"])).name).stat().st_size
        return self.wishes.file.stat().st_size

    def _place(self) -> None:
        copy = self.archive.place(self.wishes.store)
        if copy is not None:
            self.undo.append(("delete the copy of the archive", lambda: copy.unlink(missing_ok=True)))
            self._say(f"copied {self.archive.file.name} into the model store")

    def _register(self) -> None:
        name, new = self.wishes.name, self.new_version
        self.undo.append(
            (f"remove version {new}", lambda: remove(self.client, name, new, self.wishes.drain_timeout_s))
        )
        query = {"url": self.archive.file.name, "initial_workers": 0, "synchronous": "false"}
        self.logs = Logs(self.client.folder)
        self.client.register(name, query, self.wishes.load_timeout_s)
        self._say(f"registered version {new} beside {self.old_version}")

    def _load(self) -> None:
        name, new, count = self.wishes.name, self.new_version, self.workers
        started = time.monotonic()
        _ok(self.client.manage("PUT", f"/models/{name}/{new}", {"min_worker": count, "max_worker": count}), "scaling")
        while [item["status"] for item in self.client.describe(name, new)["workers"]] != ["READY"] * count:
            if error := self.logs.load_error(name):
                raise ServerError(f"a worker of {name} {new} cannot load: {error} (all of it: {self.logs.workers})")
            if time.monotonic() - started > self.wishes.load_timeout_s:
                raise ServerError(f"{name} {new} was not ready within {self.wishes.load_timeout_s:g} s")
            self.interrupts.pause(POLL_S)
        self._say(f"version {new} is ready, {count} workers, after {time.monotonic() - started:.1f} s")

    def _warm(self) -> None:
        for sample in list(self.samples) * (WARM_ROUNDS * self.workers):
            self.interrupts.check()
            self.client.predict(self.wishes.name, *sample, path=f"/{self.new_version}")
        self._say(f"warmed version {self.new_version} with {len(self.samples) * WARM_ROUNDS * self.workers} requests")

    def _compare(self) -> None:
        if not self.pids:
            return self._accept(f"version {self.old_version} has no ready worker to compare with")
        if not self.samples:
            return self._accept("there are no samples to compare with; give some with --sample")
        name, old, new = self.wishes.name, self.old_version, self.new_version
        self.named_by_us += len(self.samples)
        found = comparison.compare(self.client, name, old, new, self.samples, self.wishes.compare_by)
        if not found.asked:
            return self._accept(f"version {old} answers no sample; give others with --sample")
        if found.differences:
            shown = "; ".join(found.differences[:3])
            return self._accept(
                f"{len(found.differences)} of {found.asked} answers differ from those of {old}: {shown}"
            )
        return self._say(f"{found.asked} of {found.asked} answers are those of version {old}")

    def _accept(self, reason: str) -> None:
        if not self.wishes.accept_difference:
            raise ServerError(f"{reason}. If that is meant, say so: --accept-difference")
        self._say(f"{reason}; accepted")

    def _switch(self) -> None:
        name, old, new = self.wishes.name, self.old_version, self.new_version
        self.undo.append((f"make {old} the default again", lambda: set_default(self.client, name, old)))
        set_default(self.client, name, new)
        self._say(f"version {new} is the default")
        for sample in self.samples:
            if (answer := self.client.predict(name, *sample)).status >= 500:
                raise ServerError(f"{name} fails since the switch: {refusal(answer)}")

    def _drain(self) -> None:
        name, old, timeout_s = self.wishes.name, self.old_version, self.wishes.drain_timeout_s
        started = time.monotonic()
        draining.wait_until_idle(self.client, name, old, timeout_s, self.interrupts.pause)
        self._say(f"version {old} has answered all that it had, after {time.monotonic() - started:.1f} s")
        named = self._named() - self.named_before - self.named_by_us
        if named > 0 and not self.wishes.keep_old:
            raise ServerError(
                f"{named} requests named version {old} in their path meanwhile; they would get a 404 without it. Let "
                "those clients ask without a version, or keep it beside the new one: --keep-old"
            )

    def _remove_old(self) -> None:
        if self.wishes.keep_old:
            return self._say(f"version {self.old_version} stays registered, with its workers")
        path = f"/models/{self.wishes.name}/{self.old_version}"
        answer = self.client.manage("DELETE", path)
        if answer.status != 200:
            raise NotUndone(
                f"version {self.new_version} serves, but {self.old_version} was not removed: {refusal(answer)}"
            )
        return self._say(f"removed version {self.old_version}")

    # --- the way back ---

    def _undo(self) -> None:
        failures = list[str]()
        for what, take_back in reversed(self.undo):
            try:
                take_back()
            except (OSError, ServerError) as error:
                failures.append(f"{what}: {error}")
            else:
                self._say(f"rolled back: {what}")
        if failures:
            raise NotUndone("this is left to do: " + "; ".join(failures))

    # --- what the server tells ---

    def _about(self, version: str) -> dict[str, Any]:
        with contextlib.suppress(KeyError, ValueError, IndexError, OSError, ServerError):
            about = self.client.customized(self.wishes.name, version)
            return about if isinstance(about, dict) else {}
        return {}

    def _named(self) -> int:
        """Requests that named the old version in their path, since the server's start; 0 if it counts none."""
        with contextlib.suppress(OSError, KeyError):
            return named_requests(self.client.metrics(), self.wishes.name, self.old_version)
        return 0

    def _say(self, line: str) -> None:
        self.report(f"{self.wishes.name}: {line}")


def named_requests(metrics: str, name: str, version: str) -> int:
    """Requests that named that version of the model, by the metrics port's text."""
    labels = rf'(?=[^}}]*model_name="{re.escape(name)}")(?=[^}}]*model_version="{re.escape(version)}")'
    found = re.findall(rf"(?m)^{REQUESTS}\{{{labels}[^}}]*\}} (\S+)", metrics)
    return round(sum(map(float, found)))


def set_default(client: Client, name: str, version: str) -> None:
    """Have requests without a version go to this one. Raises ServerError."""
    _ok(client.manage("PUT", f"/models/{name}/{version}/set-default"), f"making {version} the default")


def remove(client: Client, name: str, version: str, timeout_s: float) -> None:
    """Wait until a version that is not the default has nothing to do, and unregister it. Nothing if it is not there.

    Raises ServerError or OSError.
    """
    there = [str(item["modelVersion"]) for item in client.manage("GET", f"/models/{name}/all").json()]
    if version not in there:
        return
    if client.describe(name)["modelVersion"] == version:
        raise ServerError(f"version {version} of {name} is the default; deploy another one in its place")
    draining.wait_until_idle(client, name, version, timeout_s)
    _ok(client.manage("DELETE", f"/models/{name}/{version}"), f"removing version {version}")


def _ok(answer: Answer, what: str) -> None:
    if answer.status not in (200, 202):
        raise ServerError(f"{what} was refused: {refusal(answer)}")
