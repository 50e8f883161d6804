"""What the options of models that share replicas have to agree on, and how much such replicas hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHARED = ("replicas", "max_replicas", "num_gpus", "num_cpus", "resources")
LOAD_WAIT_S = 60.0


def refuse_misfits(models: Sequence[Any], multiplex: int | None, load_wait_s: float | None) -> None:
    """Raises ValueError for options that contradict each other.

    Args:
        models: ModelOptions.
        multiplex, load_wait_s: see AppOptions.
    """
    if multiplex is None:
        if load_wait_s is not None:
            raise ValueError(
                "load_wait_s is for models that share replicas; without multiplex all are loaded at the start"
            )
        return
    for number, model in enumerate(models, 1):
        for name in SHARED:
            mine, first = getattr(model, name), getattr(models[0], name)
            if mine != first:
                raise ValueError(
                    f"with multiplex all models share replicas, so {name} has to be the same for all: model 1 has "
                    f"{first!r}, and model {number} has {mine!r}. A model that needs its own is served without "
                    "multiplex, as another application"
                )
        limit_s = LOAD_WAIT_S if load_wait_s is None else load_wait_s
        if model.timeout_s <= limit_s:
            raise ValueError(
                f"load_wait_s is {limit_s:g} and timeout_s of model {number} is {model.timeout_s:g}; wanted: a "
                "load_wait_s below it, so that a request hears that its model still loads"
            )


def held(most_models: int, per_model: int) -> tuple[int, int]:
    """Return how many requests a replica holds, and how many of them may wait for loads.

    Those that wait leave room for the requests of loaded models, and of one that is being dropped.

    Args:
        most_models: that a replica has loaded.
        per_model: requests that a replica of one model would hold.
    """
    waiting = (most_models + 1) * per_model
    return 2 * waiting, waiting
