"""A Ray of one machine for one program, with which it ends. Its ports want a token that only the program has."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from server.paths import ROOT

from handlers import cpus
from handlers.hosts import private_folders
from ray_host import ending, failures, grpc_address, keeper, leftovers, progress, tunables
from ray_host.options import AppOptions, ModelOptions, fronts_for

APP = "models"
HERE = "127.0.0.1"
SLOW = "timed out during startup"  # in Ray's error
PATIENCE_S = 30.0  # for requests that are on their way at the end
LAST_BYTES_S = 2.0  # at least, for clients to read their answers

_keepers: list[subprocess.Popen[bytes]] = []


def start(host: str, port: int, least_cpus: int = 1, grpc_port: int | None = None) -> str:
    """Start Ray and Ray Serve's HTTP server. Returns the folder of Ray's logs.

    Args:
        host, port: at which requests are answered.
        least_cpus: Ray counts at least so many CPUs, so that each replica finds one.
        grpc_port: at which gRPC calls are answered, at `host`; None for no gRPC.

    Raises RuntimeError, in one line, if Ray does not start.
    """
    _set_environment(host)
    from ray import serve

    # Its lines of level INFO say what this program knows: that Ray Serve runs, and that it runs already.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # HAProxy listens at `host`, and all behind it on this machine alone.
    address = HERE if tunables.is_haproxy(os.environ) else host

    def begin() -> str:
        with _in_root(), _own_signal():
            context = _init(
                address="local",  # also if this machine is part of a cluster
                num_cpus=max(cpus.usable(), least_cpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address=HERE,
                **_bound(address, grpc_port),
            )
        logs = f"{context.address_info['session_dir']}/logs"
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        try:
            serve.start(http_options={"host": address, "port": port}, logging_config=quiet, **_grpc(grpc_port))
        except Exception as error:  # as below
            raise failures.ServeError(error, logs) from error
        return logs

    try:
        return _begun(begin)
    except Exception as error:  # Ray raises the class Exception itself, and AssertionError, too
        leftovers.keep_logs(os.environ)
        raise RuntimeError(failures.of_start(error)) from None


def run(args: Mapping[str, Any], logs: str) -> None:
    """Serve these models; in place of those before, without a gap. Returns when all are ready.

    Args:
        args: as AppOptions has them; without `fronts`, as many as `fronts_for` says.
        logs: what `start` returned, for the message of an error.

    Raises:
        ValueError: as `app.build`, or there are more replicas than this machine has room for.
        ArchiveError: as `app.build`.
        RuntimeError: a model does not load. One line, with the error of its replica.
    """
    from ray import serve

    from ray_host.app import build

    options = AppOptions.of(args)
    _refuse_too_many(options)
    application = build({"fronts": _fronts(options), **args})
    try:
        with progress.shown(_applications, APP):
            serve.run(application, name=APP, route_prefix="/")
    except Exception as error:  # it names the deployments that failed, and not why; Ray has many classes of errors
        leftovers.keep_logs(os.environ)
        raise RuntimeError(failures.of_models(_applications(), APP, error, logs)) from None


def stop(patience_s: float = PATIENCE_S) -> None:
    """Answer what is on its way, refuse what is new, and end all that was started.

    Ray's processes are ended without Ray Serve's own way, which takes 10 s: no request is left that they could lose.

    Args:
        patience_s: after which requests that are still on their way get a 503.
    """
    import ray

    deadline = time.monotonic() + patience_s
    try:
        if ray.is_initialized():
            ending.drain(APP, patience_s)
            if folder := os.environ.get(leftovers.FOLDER):
                ending.end_haproxy(folder, max(LAST_BYTES_S, deadline - time.monotonic()))
            ray.shutdown()
    finally:
        forget()


def clear_left() -> None:
    """End what killed programs of this user have left, and say so. Their keepers do that, too, if they live."""
    for folder in leftovers.abandoned():
        count = leftovers.clear(folder, logs=True)
        print(f"an earlier serve-ray was killed; ended {count} processes that it had left", file=sys.stderr)
    private_folders.remove_abandoned(Path(tempfile.gettempdir()))


def forget() -> None:
    """End all that was started, at once, and remove its folders."""
    tunables.forget(os.environ)
    private_folders.remove_abandoned(Path(tempfile.gettempdir()))
    while _keepers:
        keeper.stop(_keepers.pop())


def _begun(begin: Callable[[], str]) -> str:
    """Call `begin`, and once more with another Ray if Ray Serve's proxy was too slow. Returns what it returns."""
    import ray

    others = set(psutil.Process().children(recursive=True))
    try:
        return begin()
    except failures.ServeError as error:
        if not error.is_slow:
            raise
    print("Ray Serve's proxy took too long to start; trying once more", file=sys.stderr, flush=True)
    if folder := os.environ.get(leftovers.FOLDER):
        ending.end_haproxy(folder, 0)
    ray.shutdown()
    _kill_all_but(others)
    return begin()


def _kill_all_but(others: Collection[psutil.Process]) -> None:
    """Kill this process's children, and theirs, that are not among `others`."""
    for process in set(psutil.Process().children(recursive=True)).difference(others):
        with contextlib.suppress(psutil.Error):
            process.kill()


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
    _kill_all_but(others)
    return ray.init(**options)


def _bound(address: str, grpc_port: int | None) -> dict[str, Any]:
    """The option of ray.init with which gRPC is answered at `address` alone; none without gRPC."""
    if grpc_port is None:
        return {}
    os.environ[grpc_address.VARIABLE] = address
    return {"runtime_env": grpc_address.HOOK}


def _grpc(port: int | None) -> dict[str, Any]:
    """The option of serve.start for gRPC, if a port is given."""
    functions = ["ray_host.grpc_service.add_to_server"]
    options = {"port": port, "grpc_servicer_functions": functions, "enable_reflection": False}
    return {} if port is None else {"grpc_options": options}


@contextlib.contextmanager
def _in_root() -> Iterator[None]:
    """Let Ray start in this tree: it puts the folder that it starts in first on the replicas' sys.path.

    Another folder could hold other handlers, such as those of an unpacked archive, or a file named like a package.
    """
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _own_signal() -> Iterator[None]:
    """Keep this program's handler of SIGTERM. Ray's ends the process, and leaves what it has started."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fronts(options: AppOptions) -> int:
    """How many fronts suit the GPUs that the models use, and the cores of this machine."""
    import ray

    there: Mapping[str, float] = ray.cluster_resources()
    uses_gpus = any("GPU" in _shares(model, there) for model in options.models)
    return fronts_for(int(there.get("GPU", 0)) if uses_gpus else 0, cpus.usable())


def _refuse_too_many(options: AppOptions) -> None:
    """Raises ValueError for replicas that find no room: Ray Serve would wait for another machine, for ever."""
    import ray

    there: Mapping[str, float] = ray.cluster_resources()
    free = dict(there)
    for model in options.placed:
        for name, share in _shares(model, there).items():
            free[name] = free.get(name, 0.0) - model.replicas * share
            # A replica is on one GPU: two halves of different GPUs are no room.
            room = int(1 / share + 1e-9) * int(there.get(name, 0)) if name == "GPU" else math.inf
            if free[name] < -1e-6 or model.replicas > room:
                raise ValueError(
                    f"{model.replicas} replicas of {model.archive}, each with {share:g} of a {name}, find no room: "
                    f"Ray sees {there.get(name, 0):g} {name}s here, and all models share them"
                )


def _shares(model: ModelOptions, there: Mapping[str, float]) -> dict[str, float]:
    """What Ray sets aside for each replica, by Ray's names; without what a replica does not need.

    num_gpus is None: as app.gpus has it.
    """
    gpus = model.num_gpus if model.num_gpus is not None else min(1.0, there.get("GPU", 0.0))
    wanted = {"CPU": model.num_cpus, "GPU": gpus, **model.resources}
    return {name: float(share) for name, share in wanted.items() if share}


def _applications() -> Mapping[str, Any]:
    """What Ray Serve says of its applications, by name; nothing if it does not answer."""
    from ray import serve

    try:
        found: Mapping[str, Any] = serve.status().applications
        return found
    except Exception:  # the error that is being explained says more than this one
        return {}


def _set_environment(host: str) -> None:
    """Before Ray is imported: it sends no usage statistics, and its ports want a token, which is in no file.

    Ray's processes inherit all of it.
    """
    if reason := tunables.choose(os.environ, host):
        print(f"Ray's own proxy reads the requests: {reason}. HAProxy would take less CPU time", file=sys.stderr)
    if folder := os.environ.get(leftovers.FOLDER):
        _keepers.append(keeper.start(folder))
    tunables.choose_for_processes(os.environ)
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
