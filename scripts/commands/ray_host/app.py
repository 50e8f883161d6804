"""The application: a deployment per model, and the front before them. `serve deploy` calls `build`.

Each model is a deployment of its own: it has its own share of a GPU, its own batches, queue and autoscaling, and one
model's crash or update leaves the others alone. With `multiplex` all models share one deployment (multiplex.py), for
many models that are rarely asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from ray_host import archives, sharing
from ray_host.archives import Head
from ray_host.front import Front, Served
from ray_host.multiplex import Entry, replica_class
from ray_host.options import AppOptions, ModelOptions
from ray_host.replica import Replica

FRONT, SHARED = "front", "models"  # deployments: of HTTP; of all models, with multiplex
# A replica holds a batch that runs, one that waits for it, and one on the way. Small batches end sooner than that
# helps, so it holds LEAST_HELD requests at least.
BATCHES_HELD = 3
LEAST_HELD = 64
# If all replicas hold that many, Ray's router looks again after a while: 25 ms, then up to 500, while replicas idle.
LOOK_AGAIN_S, LONGEST_S = 0.002, 0.016
ROUTER = "ray_host.routing.LeastBusyRouter"
FRONT_HOLDS = 10_000  # requests; models have bounds of their own
HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 30}
DRAIN_S = 60  # that a replica gets for its last answers


def build(args: Mapping[str, Any]) -> Any:
    """Return the application for the `args` of a deployment file; see AppOptions.

    Raises ValueError for wrong args, ArchiveError for an archive that is not there or not the one of the digest.
    """
    options = AppOptions.of(args)
    named = _named(options)
    shared = _shared(options, named) if options.multiplex else None
    found: dict[str, list[Served]] = {}
    for key, (model, name, told) in named.items():
        bound = _own(key, model, told) if shared is None else shared
        how = {**gathering(model, told, options.fronts), "key": "" if shared is None else key}
        found.setdefault(name, []).append(Served(told.version, bound, model.timeout_s, **how))
    front = serve.deployment(Front).options(
        name=FRONT,
        num_replicas=options.fronts,
        max_ongoing_requests=FRONT_HOLDS,
        ray_actor_options={"num_cpus": options.front_num_cpus},
        graceful_shutdown_timeout_s=DRAIN_S,
        **HEALTH,
    )
    return front.bind(found)


def _named(options: AppOptions) -> dict[str, tuple[ModelOptions, str, Head]]:
    """Each model, the name under which it is served, and what its archive says; by names that an update finds again.

    Raises ArchiveError, and ValueError for a name and a version that come twice.
    """
    found: dict[str, tuple[ModelOptions, str, Head]] = {}
    for model in options.models:
        told = archives.head_of(model)
        name = model.name or told.name
        others = [head.version for _, other, head in found.values() if other == name]
        if told.version in others:
            raise ValueError(f"the model {name} of version {told.version} is named twice")
        found[f"{name}-{told.version}" if others else name] = (model, name, told)
    return found


def _own(key: str, model: ModelOptions, told: Head) -> Any:
    """A deployment with one model, bound."""
    device = "cuda" if gpus(model) else "cpu"
    return serve.deployment(Replica).options(**deployment_options(model, told, key)).bind(model, told.digest, device)


def _shared(options: AppOptions, named: Mapping[str, tuple[ModelOptions, str, Head]]) -> Any:
    """The deployment that all models share, bound."""
    most, first = options.multiplex or 1, options.models[0]
    _, _, head = next(iter(named.values()))
    largest = max(model.batch_size or told.batch_size for model, _, told in named.values())
    chosen = deployment_options(replace(first, batch_size=largest), head, SHARED)
    chosen["max_ongoing_requests"], waiting = sharing.held(most, chosen["max_ongoing_requests"])
    if chosen["max_queued_requests"] > 0:  # Ray counts the requests of all models together
        chosen["max_queued_requests"] = sum(model.max_queued for model in options.models)
    entries = {key: Entry(model, name, told.version, told.digest) for key, (model, name, told) in named.items()}
    wait_s = options.load_wait_s or sharing.LOAD_WAIT_S
    device = "cuda" if gpus(first) else "cpu"
    return serve.deployment(replica_class(most)).options(**chosen).bind(entries, device, wait_s, waiting)


def deployment_options(model: ModelOptions, told: Head, name: str) -> dict[str, Any]:
    """Return how Ray Serve runs the replicas of a model. name: of the deployment."""
    batch_size = model.batch_size or told.batch_size
    is_gathered = gathering(model, told, 1)["per_call"] > 1
    return {
        "name": name,
        **_replicas(model, batch_size),
        "max_ongoing_requests": max(LEAST_HELD, BATCHES_HELD * batch_size),
        "max_queued_requests": -1 if is_gathered else model.max_queued,  # the front counts requests, and Ray calls
        "request_router_config": RequestRouterConfig(
            request_router_class=ROUTER, initial_backoff_s=LOOK_AGAIN_S, max_backoff_s=LONGEST_S
        ),
        "graceful_shutdown_timeout_s": DRAIN_S,
        "ray_actor_options": {
            "num_cpus": model.num_cpus,
            "num_gpus": gpus(model),
            "resources": dict(model.resources),
        },
        **HEALTH,
    }


def gathering(model: ModelOptions, told: Head, fronts: int) -> dict[str, Any]:
    """Return how a front sends a model's requests, by Served's names: a batch in each call.

    A model that scales by its load gets a call per request: Ray counts calls, and starts replicas by their number.
    """
    if model.is_scaled:
        return {"per_call": 1}
    calls = max(2, math.ceil(BATCHES_HELD * model.replicas / fronts))
    return {"per_call": model.batch_size or told.batch_size, "calls": calls, "max_queued": model.max_queued}


def gpus(model: ModelOptions) -> float:
    """Return the share of a GPU for each replica."""
    if model.num_gpus is not None:
        return model.num_gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _replicas(model: ModelOptions, batch_size: int) -> dict[str, Any]:
    """A fixed number, or autoscaling: another replica is started if more than a batch waits in each."""
    if not model.is_scaled:
        return {"num_replicas": model.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": model.replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": max(2, batch_size),
            **model.autoscaling,
        }
    }
