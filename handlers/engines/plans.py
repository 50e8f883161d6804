"""TensorRT plans as files: what each was built for, whether it is whole, and where one comes from.

A plan is machine code for one GPU model, one TensorRT and one network. `model.json` next to `model.plan` holds its
fingerprint and SHA-256; a plan whose digest differs is never deserialised. No TensorRT is imported here.

A plan is looked for in the archive, then in the cache folder. If neither has it, it is built under a file lock, so
that only one of a model's workers builds it.
"""

from __future__ import annotations

import contextlib
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

from filelock import FileLock, Timeout

from handlers import caches

logger = logging.getLogger(__name__)

PLAN, RECORD = "model.plan", "model.json"
STALE_S = 3600.0  # age at which a partial file belongs to no running process; a gigabyte takes seconds to write


class PlanError(ValueError):
    """A plan does not fit this machine, or is damaged."""


@dataclass(frozen=True)
class Fingerprint:
    """All that a plan depends on. Models with equal fingerprints can share a plan.

    Args:
        tensorrt: its version.
        cuda: the version that PyTorch was built with.
        compute_capability: of the GPU, as "9.0".
        gpu: its name.
        onnx: SHA-256 of the network, in hex.
        buckets: the largest batch size of each optimization profile, ascending.
        image_size: in pixels.
        precision: "fp16".
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
        """Return each difference to the fingerprint that a record holds, with the values on both sides."""
        mine = json.loads(json.dumps(asdict(self)))
        keys = sorted(mine.keys() | other.keys())
        return [
            f"{key}: plan {_short(other.get(key))}, here {_short(mine.get(key))}"
            for key in keys
            if mine.get(key) != other.get(key)
        ]

    @property
    def key(self) -> str:
        """The name of the plan's folder in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """A plan that fits.

    Args:
        content: the serialised engine.
        source: "archive", "cache" or "built here".
    """

    content: bytes
    source: str


def default_cache() -> Path:
    """Return the folder of plans and measurements, for an empty setting planCache. See handlers.caches."""
    return caches.folder("plans")


def check(folder: Path, wanted: Fingerprint) -> str:
    """Return the SHA-256 that the plan in `folder` should have, in hex. Raises PlanError if its fingerprint differs.

    Does not read the plan, so a damaged one passes; `read` finds it.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        theirs, digest = dict(record["fingerprint"]), record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise PlanError(f"{folder / RECORD} is missing or unreadable, so its plan is not trusted") from None
    if different := wanted.differences(theirs):
        raise PlanError(f"the plan was built for something else: {'; '.join(different)}")
    return str(digest)


def read(folder: Path, wanted: Fingerprint) -> bytes:
    """Return the plan in `folder`. Raises PlanError if its fingerprint differs, TornPlanError if its digest does."""
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
    """A plan's bytes are not the bytes that were written."""


def write(folder: Path, content: bytes, fingerprint: Fingerprint) -> None:
    """Write a plan and its record into `folder`, each in one step, the record last."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    record = {"fingerprint": asdict(fingerprint), "sha256": hashlib.sha256(content).hexdigest()}
    replace(folder / PLAN, content)
    replace(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def obtain(archived: Path, cache: Path, wanted: Fingerprint, on_mismatch: str, build: Callable[[], bytes]) -> Plan:
    """Return a plan from the archive, from the cache, or from `build`. What is built is kept in the cache.

    Args:
        archived: the archive's folder for a plan; it need not exist.
        cache: the folder of all plans built on this machine.
        wanted: what the plan has to fit.
        on_mismatch: if the archive's plan does not fit, "rebuild" one into the cache, or "refuse".
        build: makes the plan; takes minutes.

    Raises:
        PlanError: if the archive's plan does not fit and on_mismatch is "refuse", or is damaged, or none was built.
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
    with contextlib.suppress(PlanError):  # reading needs no lock, so the folder may be read-only
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
        except OSError as error:  # it took minutes to build, and can serve
            logger.warning("the plan serves, but could not be kept in %s: %s", folder, error)
        return Plan(content, "built here")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is created if necessary, and wait for it as long as another process holds it.

    The system releases the lock when its process ends, however that ends. That is why file systems without flock are
    refused: filelock would put a marker file there, which outlives a killed worker.

    Raises:
        OSError: if the folder cannot be written to, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder / "lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another worker, which does the same in %s", folder)
        started = time.monotonic()
        lock.acquire()
        logger.info("the other worker was done after %.0f s", time.monotonic() - started)
    try:
        yield
    finally:
        lock.release()


def replace(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader finds either the old content or the new content.

    Removes partial files of this name that killed processes left, once they are STALE_S old.
    """
    _remove_stale(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # containers that share a volume share pids as well
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:  # on a full disk, a partial file would keep the space
        partial.unlink(missing_ok=True)
        raise


def _remove_stale(path: Path) -> None:
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):  # another process removed it first, or only another user may
            if time.time() - partial.stat().st_mtime > STALE_S:
                partial.unlink()


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
