"""TensorRT plans as files: what each was built for, whether it is whole, and where one comes from.

A plan is machine code for one GPU model, one TensorRT and one network. Beside `model.plan` lies `model.json` with
its fingerprint and SHA-256; a plan whose digest differs is never deserialised. No TensorRT is imported here.

A plan is looked for in the archive, then in the cache folder, and else built: under a file lock, so that the
workers of a model build it once between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from handlers import caches

logger = logging.getLogger(__name__)

PLAN, RECORD = "model.plan", "model.json"
STALE_S = 3600.0  # since a partial file was last written to; a gigabyte takes seconds


class PlanError(ValueError):
    """A plan is not for this machine, or not whole."""


@dataclass(frozen=True)
class Fingerprint:
    """All that a plan depends on. Two equal fingerprints may share a plan.

    tensorrt, cuda: versions. compute_capability: as "9.0". onnx: SHA-256 of the network, in hex. buckets: the
    optimization profiles' batch sizes. image_size: pixels. precision: "fp16".
    """

    tensorrt: str
    cuda: str
    compute_capability: str
    gpu: str
    onnx: str
    buckets: tuple[int, ...]
    image_size: int
    precision: str

    def differences(self, other: Mapping[str, object]) -> list[str]:
        """What `other`, a record's fingerprint, has otherwise; both sides named."""
        mine = json.loads(json.dumps(asdict(self)))
        keys = sorted(mine.keys() | other.keys())
        return [
            f"{key}: plan {_short(other.get(key))}, here {_short(mine.get(key))}"
            for key in keys
            if mine.get(key) != other.get(key)
        ]

    @property
    def key(self) -> str:
        """A folder name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """content: the serialised engine. source: "archive", "cache" or "built here"."""

    content: bytes
    source: str


def default_cache() -> Path:
    """Where plans and measurements are kept unless planCache says otherwise; see handlers.caches."""
    return caches.folder("plans")


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex; read once by each process, as long as its time and size stay."""
    found = path.stat()
    return _file_digest(path, found.st_mtime_ns, found.st_size)


@functools.cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def check(folder: Path, wanted: Fingerprint) -> str:
    """The digest that the plan in `folder` has to have. Raises PlanError where it is for something else.

    Whether it is whole is for `read` to tell: that takes reading it.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        theirs, digest = dict(record["fingerprint"]), record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise PlanError(f"{folder / RECORD} is missing or unreadable, so the plan beside it is not trusted") from None
    if different := wanted.differences(theirs):
        raise PlanError(f"the plan was built for something else: {'; '.join(different)}")
    return str(digest)


def read(folder: Path, wanted: Fingerprint) -> bytes:
    """The plan in `folder`. Raises PlanError where it is for something else, or its digest differs."""
    digest = check(folder, wanted)
    try:
        content = (folder / PLAN).read_bytes()
    except OSError as error:
        raise PlanError(f"{folder / PLAN} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise TornPlanError(
            f"{folder / PLAN} is torn or was changed: its SHA-256 is not the one in {RECORD}. "
            "Put the archive back as it was, or package again with --force"
        )
    return content


class TornPlanError(PlanError):
    """A plan's bytes are not those that were written."""


def write(folder: Path, content: bytes, fingerprint: Fingerprint) -> None:
    """Put a plan and its record into `folder`, each in one step, the record last."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    record = {"fingerprint": asdict(fingerprint), "sha256": hashlib.sha256(content).hexdigest()}
    replace(folder / PLAN, content)
    replace(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def obtain(archived: Path, cache: Path, wanted: Fingerprint, on_mismatch: str, build: Callable[[], bytes]) -> Plan:
    """The plan from the archive's folder, the cache, or `build`.

    A plan in the archive that is for something else is rebuilt into the cache, or refused, as `on_mismatch` says;
    one that is torn is always refused. Raises PlanError.
    """
    if archived.is_dir():
        try:
            return Plan(read(archived, wanted), "archive")
        except TornPlanError:
            raise
        except PlanError as error:
            if on_mismatch == "refuse":
                raise PlanError(
                    f"{error}. onMismatch: rebuild in model-config.yaml builds one here; or package again, with "
                    "--force, on this machine"
                ) from None
            logger.warning("%s; one of this machine's own serves, as onMismatch says", error)
    return _cached(cache / wanted.key, wanted, build)


def _cached(folder: Path, wanted: Fingerprint, build: Callable[[], bytes]) -> Plan:
    with contextlib.suppress(PlanError):  # a plan that is there needs no lock, nor a folder that can be written to
        return Plan(read(folder, wanted), "cache")
    with locked(folder):
        if (folder / RECORD).exists():
            try:
                return Plan(read(folder, wanted), "cache")
            except PlanError as error:
                logger.warning("cached plan not used: %s; building it again", error)
        content = build()
        try:
            write(folder, content, wanted)
        except OSError as error:  # minutes of building shall not be lost over it
            logger.warning("the plan serves, but could not be kept in %s: %s", folder, error)
        return Plan(content, "built here")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is made; the system releases it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another worker, which does the same in %s", folder)
            started = time.monotonic()
            fcntl.flock(lock, fcntl.LOCK_EX)
            logger.info("the other worker was done after %.0f s", time.monotonic() - started)
        yield


def replace(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever reads it finds the old content or the new.

    What a process that was killed has left of such a file is removed, once it is STALE_S old.
    """
    _remove_stale(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # containers that share a volume share pids as well
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:  # a full disk, say, whose space it shall not keep
        partial.unlink(missing_ok=True)
        raise


def _remove_stale(path: Path) -> None:
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):  # another process may be faster, or may be the only one to be allowed to
            if time.time() - partial.stat().st_mtime > STALE_S:
                partial.unlink()


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
