"""A Ray of one machine for one program, with which it ends. Its ports want a token that only the program has."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any

import psutil

from handlers import cpus
from ray_host import failures
from ray_host.options import AppOptions

APP = "models"
HERE = "127.0.0.1"
SLOW = "timed out during startup"  # in Ray's error


def start(host: str, port: int, least_cpus: int = 1) -> str:
    """Start Ray and Ray Serve's HTTP server. Returns the folder of Ray's logs.

    Args:
        host, port: at which requests are answered.
        least_cpus: Ray counts at least so many CPUs, so that each replica finds one.

    Raises RuntimeError, in one line, if Ray does not start.
    """
    _set_environment()
    from ray import serve

    try:
        context = _init(
            address="local",  # also if this machine is part of a cluster
            num_cpus=max(cpus.usable(), least_cpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=HERE,
        )
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    except Exception as error:  # Ray raises the class Exception itself, and AssertionError, too
        raise RuntimeError(failures.of_start(error)) from None
    return f"{context.address_info['session_dir']}/logs"


def run(args: Mapping[str, Any], logs: str) -> None:
    """Serve these models; in place of those before, without a gap. Returns when all are ready.

    Args:
        args: as AppOptions has them.
        logs: what `start` returned, for the message of an error.

    Raises:
        ValueError: as `app.build`, or there are more replicas than the GPUs take.
        ArchiveError: as `app.build`.
        RuntimeError: a model does not load. One line, with the error of its replica.
    """
    from ray import serve

    from ray_host.app import build

    _refuse_too_many(AppOptions.of(args))
    application = build(args)
    try:
        serve.run(application, name=APP, route_prefix="/")
    except Exception as error:  # it names the deployments that failed, and not why; Ray has many classes of errors
        raise RuntimeError(failures.of_models(_applications(), APP, error, logs)) from None


def stop() -> None:
    """Answer what is on its way, and end all that was started."""
    import ray
    from ray import serve

    if ray.is_initialized():
        with contextlib.suppress(Exception):  # Ray itself is gone or half started: nothing is left to be answered
            serve.shutdown()
        ray.shutdown()


def _init(**options: Any) -> Any:
    """Call ray.init, and once more if Ray's processes were too slow.

    Ray 2.60 gives its agent 15 s to write its ports, which no setting changes (WaitForPersistedPort in Ray's
    src/ray/util/port_persistence.h). A machine that is busy, or that reads Ray's files for the first time, needs
    longer. The second time, the files are in memory.
    """
    import ray

    others = set(psutil.Process().children(recursive=True))
    try:
        return ray.init(**options)
    except Exception as error:
        if SLOW not in str(error):
            raise
    print("Ray's processes took too long to start; trying once more", file=sys.stderr, flush=True)
    for process in set(psutil.Process().children(recursive=True)) - others:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return ray.init(**options)


def _refuse_too_many(options: AppOptions) -> None:
    """Raises ValueError for replicas that have no GPU: Ray Serve would wait for another machine, for ever."""
    import ray

    there = int(ray.cluster_resources().get("GPU", 0))
    free = float(there)
    for model in options.models:
        share = model.num_gpus or 0.0
        on_each = int(1 / share + 1e-9) if share else 0
        free -= model.replicas * share
        if share and (model.replicas > on_each * there or free < -1e-6):
            raise ValueError(
                f"{model.replicas} replicas of {model.archive}, each with {share:g} of a GPU, find no room: Ray sees "
                f"{there} GPUs here, and all models share them"
            )


def _applications() -> Mapping[str, Any]:
    """What Ray Serve says of its applications, by name; nothing if it does not answer."""
    from ray import serve

    try:
        found: Mapping[str, Any] = serve.status().applications
        return found
    except Exception:  # the error that is being explained says more than this one
        return {}


def _set_environment() -> None:
    """Before Ray is imported: it sends no usage statistics, and its ports want a token, which is in no file.

    Ray's processes inherit all of it.
    """
    cpus.wait_patiently(os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
