"""What an application's file says of its models: the `args` of a Ray Serve application."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ray_host import sharing

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
QUEUED = 1000
TIMEOUT_S = 120.0  # TorchServe's default_response_timeout
# Ray ignores a key of its autoscaling_config that it does not know.
AUTOSCALING = (
    "target_ongoing_requests",
    "upscale_delay_s",
    "downscale_delay_s",
    "look_back_period_s",
    "metrics_interval_s",
    "upscaling_factor",
    "downscaling_factor",
    "initial_replicas",
)


@dataclass(frozen=True)
class ModelOptions:
    """One model.

    Args:
        archive: path or URL of a .mar. A path has to be there on each machine; a URL is read by fsspec.
        digest: the archive's content digest; a URL needs one.
        name: under which it is served; None for the archive's own.
        replicas: processes with this model. If max_replicas is larger, the fewest.
        max_replicas: the most that autoscaling starts; None for no autoscaling.
        autoscaling: further keys of Ray's autoscaling_config, as upscale_delay_s.
        num_gpus: share of a GPU for each replica, above 0 to 1; 0 for the CPU; None for 1 if the cluster has GPUs.
        num_cpus: CPUs that Ray sets aside for each replica, and PyTorch's threads in it.
        batch_size: requests that are answered together; None for the archive's batchSize.
        max_delay_ms: that the first of them waits for others; None for the archive's maxBatchDelay.
        max_queued: requests that may wait for a free replica, per front; the next one gets a 503.
        timeout_s: until a request gets a 504.
        precision, engine, settings, edited_settings, allow_other_version: see handlers.load_archive.
        resources: Ray's custom resources for each replica, for example to choose machines.
    """

    archive: str
    digest: str | None = None
    name: str | None = None
    replicas: int = 1
    max_replicas: int | None = None
    autoscaling: Mapping[str, float] = field(default_factory=dict)
    num_gpus: float | None = None
    num_cpus: float = 1
    batch_size: int | None = None
    max_delay_ms: float | None = None
    max_queued: int = QUEUED
    timeout_s: float = TIMEOUT_S
    precision: str | None = None
    engine: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    edited_settings: bool = False
    allow_other_version: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self, "archive", isinstance(self.archive, str) and self.archive != "", "a path or a URL")
        for name in ("name", "precision", "engine"):
            _check(self, name, getattr(self, name) is None or isinstance(getattr(self, name), str), "a text")
        _check(self, "digest", self.digest is None or _is_digest(self.digest), "sha256: and 64 hex digits")
        for name in ("settings", "resources", "autoscaling"):
            _check(self, name, isinstance(getattr(self, name), Mapping), "keys and values")
        for name in ("edited_settings", "allow_other_version"):
            _check(self, name, isinstance(getattr(self, name), bool), "true or false")
        self._check_numbers()
        self._check_autoscaling()

    def _check_numbers(self) -> None:
        counts = {"replicas": 1, "max_queued": 1, "max_replicas": self.replicas, "batch_size": 1}
        for name, least in counts.items():
            _check(
                self, name, _is_count(getattr(self, name), least) or _may_lack(self, name), f"a number from {least}"
            )
        for name in ("num_cpus", "max_delay_ms"):
            _check(self, name, _is_number(getattr(self, name)) or _may_lack(self, name), "a number from 0")
        _check(self, "timeout_s", _is_number(self.timeout_s) and self.timeout_s > 0, "seconds above 0")
        _check(
            self,
            "num_gpus",
            self.num_gpus is None or (_is_number(self.num_gpus) and self.num_gpus <= 1),
            "a number from 0 to 1: a replica runs on one GPU, and several GPUs take several replicas",
        )

    @property
    def is_scaled(self) -> bool:
        """Whether the load decides how many replicas run."""
        return self.max_replicas not in (None, self.replicas)

    def _check_autoscaling(self) -> None:
        wanted = f"numbers from 0, by these keys: {', '.join(AUTOSCALING)}"
        are_known = self.autoscaling.keys() <= set(AUTOSCALING) and all(map(_is_number, self.autoscaling.values()))
        _check(self, "autoscaling", are_known, wanted)
        is_used = self.is_scaled or not self.autoscaling
        _check(self, "autoscaling", is_used, "max_replicas, and that above replicas, for a model that has it")


@dataclass(frozen=True)
class AppOptions:
    """One application.

    Args:
        models: at least one.
        fronts: processes that read HTTP requests; two or more on different machines outlive one of them.
        front_num_cpus: CPUs that Ray sets aside for each of them.
        multiplex: models that are loaded in a replica at a time; all models share the replicas. None for replicas
            with one model each.
        load_wait_s: seconds that a request waits until its model is loaded, with multiplex; None for LOAD_WAIT_S.
    """

    models: tuple[ModelOptions, ...]
    fronts: int = 1
    front_num_cpus: float = 1
    multiplex: int | None = None
    load_wait_s: float | None = None

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> AppOptions:
        """Return the options in the `args` of a file. Raises ValueError for an unknown key or a wrong value."""
        _refuse_unknown(args, cls, "args")
        models = args.get("models")
        if not isinstance(models, list) or not models:
            raise ValueError("args wants models: a list with an archive for each model")
        return cls(**{**args, "models": tuple(_model(entry, number) for number, entry in enumerate(models, 1))})

    def __post_init__(self) -> None:
        _check(self, "fronts", _is_count(self.fronts, 1), "a whole number from 1")
        _check(self, "front_num_cpus", _is_number(self.front_num_cpus), "a number from 0")
        is_right = self.multiplex is None or _is_count(self.multiplex, 1)
        _check(self, "multiplex", is_right, "a whole number from 1: models that are loaded in a replica at a time")
        is_right = self.load_wait_s is None or (_is_number(self.load_wait_s) and self.load_wait_s > 0)
        _check(self, "load_wait_s", is_right, "seconds above 0")
        sharing.refuse_misfits(self.models, self.multiplex, self.load_wait_s)

    @property
    def placed(self) -> tuple[ModelOptions, ...]:
        """The models whose `replicas` take room: with multiplex one, as all share its replicas."""
        return self.models if self.multiplex is None else self.models[:1]


def fronts_for(gpus: int, cores: int) -> int:
    """Return how many processes read requests on a machine: one for 4 cores, and 3 per GPU at most.

    A front takes about 0.5 ms of CPU time for a request with a short answer (docs/ray.md), and more for a long one.
    So 2,000 short requests per second keep one front busy. Three per GPU leave room.
    """
    return max(1, min(cores // 4, 3 * gpus))


def _model(entry: object, number: int) -> ModelOptions:
    where = f"model {number} of args"
    if not isinstance(entry, Mapping) or "archive" not in entry:
        raise ValueError(f"{where} wants an archive: a path or a URL")
    _refuse_unknown(entry, ModelOptions, where)
    try:
        return ModelOptions(**entry)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _refuse_unknown(given: Mapping[str, Any], kind: type, where: str) -> None:
    known = [item.name for item in fields(kind)]
    if unknown := sorted(str(key) for key in given if key not in known):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known: {', '.join(known)}")


def _check(options: object, name: str, is_good: bool, wanted: str) -> None:
    """Raises ValueError unless the value is good."""
    if not is_good:
        raise ValueError(f"{name} is {getattr(options, name)!r}; wanted: {wanted}")


def _may_lack(options: ModelOptions, name: str) -> bool:
    return name in ("max_replicas", "batch_size", "max_delay_ms") and getattr(options, name) is None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    """Whether this is a number from 0 that is finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
