"""A stop that loses no request: new ones are refused, those that came are answered, and then TorchServe may end.

TorchServe itself drops all connections at SIGTERM. But a model that has no worker refuses at once, with 503. So each
model gets one more version that has no workers and never will, and that becomes the default. A request that names its
version is taken until the end; nginx in front of TorchServe refuses those too (scripts/deployment/front.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from server.client import Client, refusal
from server.errors import ServerError

from updates import draining

REFUSING = "0-refusing"  # the version that has no workers
MANIFEST = {
    "createdOn": "",
    "runtime": "python",
    "model": {"modelName": "refusing", "handler": "handler.py", "modelVersion": REFUSING},
    "archiverVersion": "0.12.0",
}
LAST_BYTES_S = 0.3  # an answer may be on its way to the client a moment longer than its worker has it
Report = Callable[[str], None]


def drain(client: Client, timeout_s: float, report: Report) -> bool:
    """Have all models refuse new requests, and wait until all others are answered.

    Args:
        client: of a TorchServe on this machine; a folder is written into client.folder.
        timeout_s: seconds to wait at most.
        report: is given a line per model that is idle, or is not.

    Returns whether every request was answered. Raises nothing for a server that is gone: it has no requests.
    """
    deadline = time.monotonic() + timeout_s
    idle = True
    try:
        archive = _refusing_archive(client.folder)
        found = {name: _versions(client, name) for name in client.models()}
        for name in found:
            _refuse(client, name, archive)
        for name, versions in found.items():
            for version in versions:
                idle &= _idle(client, name, version, deadline, report)
    except (OSError, ServerError, KeyError, ValueError) as error:
        report(f"could not wait for the requests that are in work: {error}")
        return False
    time.sleep(LAST_BYTES_S)
    return idle


def _idle(client: Client, name: str, version: str, deadline: float, report: Report) -> bool:
    try:
        draining.wait_until_idle(client, name, version, max(0.0, deadline - time.monotonic()))
    except ServerError as error:
        report(str(error))
        return False
    report(f"{name} {version} has answered all that it had")
    return True


def _versions(client: Client, name: str) -> list[str]:
    return [str(item["modelVersion"]) for item in client.manage("GET", f"/models/{name}/all").json()]


def _refuse(client: Client, name: str, archive: Path) -> None:
    """Make a version without workers the default one."""
    answer = client.manage("POST", "/models", {"url": str(archive), "model_name": name, "initial_workers": 0})
    if answer.status not in (200, 409):  # 409: it is there already
        raise ServerError(f"{name} cannot be made to refuse: {refusal(answer)}")
    answer = client.manage("PUT", f"/models/{name}/{REFUSING}/set-default")
    if answer.status != 200:
        raise ServerError(f"{name} cannot be made to refuse: {refusal(answer)}")


def _refusing_archive(folder: Path) -> Path:
    """Write an unpacked archive without anything in it; TorchServe takes a folder as it takes a .mar."""
    archive = (folder / "logs" / "refusing").resolve()
    (archive / "MAR-INF").mkdir(parents=True, exist_ok=True)
    (archive / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    (archive / "handler.py").write_text(
        "# This version has no workers, so it refuses all requests.\n", encoding="utf-8"
    )
    return archive
