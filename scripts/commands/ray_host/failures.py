"""Why Ray or a model did not start, in one line: Ray's own errors are pages, or do not name the reason."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_host import crashes

TRACEBACK = "Traceback (most recent call last):"
FRAME = re.compile(r'\s+File "')
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
DIED = "ActorDiedError"
ERROR = "Error:\n"  # stands before a replica's error in the message of a deployment
LONGEST = 1000  # characters
# In the errors of Ray 2.60 for a proxy that is too slow: serve/_private/api.py waits for 60 s, haproxy.py for 30 s.
SLOW_PROXY = (
    "proxies not available after",
    "did not take over the admin socket within",
    "did not enter running state within",  # in other releases
)
LONGER = "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S=60 gives HAProxy more time than its 30 s"
WAYS_OUT = (
    "Often this machine has too few free CPUs or too little memory just now, so try again when it is less busy; or "
    "the folder for Ray (RAY_TMPDIR, else TMPDIR, else /tmp) or /dev/shm has no room; or another program has set "
    "variables RAY_... in this environment"
)


class ServeError(Exception):
    """Ray runs, and Ray Serve did not start.

    Args:
        error: that serve.start has raised.
        logs: the folder of Ray's logs.
    """

    def __init__(self, error: Exception, logs: str) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.logs = logs

    @property
    def is_slow(self) -> bool:
        """Whether the proxy did not run in time, which may be better the next time."""
        return any(words in str(self) for words in SLOW_PROXY)


def of_start(error: BaseException) -> str:
    """Return why Ray or Ray Serve did not start, and what to do about it."""
    if isinstance(error, ServeError):
        longer = f". {LONGER}" if error.is_slow else ""
        return (
            f"Ray Serve did not start: {reason(str(error))}. {WAYS_OUT}{longer}. What its controller and its proxy "
            f"say is in {error.logs}/serve"
        )
    logs = f"{os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()}/ray/session_latest/logs"
    return (
        f"Ray did not start: {reason(f'{type(error).__name__}: {error}')}. {WAYS_OUT}. What Ray's processes say is "
        f"in {logs} (gcs_server.out, raylet.out)"
    )


def of_models(applications: Mapping[str, Any], app: str, error: BaseException, logs: str) -> str:
    """Return why models do not serve: the error of a replica, for each deployment that has one.

    Args:
        applications: of serve.status(), by name.
        app: the application's name.
        error: that serve.run has raised; it is returned if the status says no more.
        logs: the folder of Ray's logs.
    """
    overview = applications.get(app)
    told = list(_deployments(overview, app, logs)) if overview is not None else []
    what = "; ".join(told) or reason(f"{type(error).__name__}: {error}")
    return f"the models do not serve: {what}. The replicas' logs are in {logs}/serve"


def _deployments(overview: Any, app: str, logs: str) -> Iterator[str]:
    """Each deployment that failed, with the error of its last replica."""
    for name, deployment in sorted(overview.deployments.items()):
        _, found, error = deployment.message.partition(ERROR)
        if found:
            why = crashes.of_replica(Path(logs), app, name) if DIED in error else reason(error)
            yield f"a replica of {name} did not load: {why}"


def reason(text: str) -> str:
    """Return an error's last cause in one line, without the lines of its traceback.

    What comes behind the last traceback's indented lines is the error itself. It may have several lines. Ray leaves
    the traceback's first line out if the error comes from another process.
    """
    escaped = (
        text.rpartition(TRACEBACK)[2].replace("\\n", "\n").replace("\\t", "\t")
    )  # Ray takes repr() of some errors
    lines = COLOURS.sub("", escaped).splitlines()
    frames = [index for index, line in enumerate(lines) if FRAME.match(line)]
    lines = lines[frames[-1] :] if frames else lines
    if frames or TRACEBACK in text:
        while lines and (not lines[0].strip() or lines[0].startswith((" ", "\t"))):
            del lines[0]
    said = " ".join(" ".join(lines).split()).rstrip(".:")
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
