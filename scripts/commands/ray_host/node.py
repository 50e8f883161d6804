"""The environment of Ray's processes on one machine of a cluster. What a user has set stays.

HAProxy runs as for scripts/serve-ray (the file `haproxy`): clients come to all addresses of the machine, pages of
figures to the machine itself alone, and errors are JSON. All machines of a cluster need the same environment.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from server.paths import python_path

from ray_host import door, leftovers, tunables

AUTH_MODE = "RAY_AUTH_MODE"
ALWAYS = {
    AUTH_MODE: "token",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "180",  # request_timeout_s of scripts/deployment/ray/cluster.yaml
}
PURPOSE = b"the door of scripts/commands/ray_host's fronts"


def choose(environment: MutableMapping[str, str]) -> None:
    """Set what `environment` does not set yet, and make a private folder for HAProxy's files.

    Raises OSError if HAProxy is wanted, and does not run here. The other machines would count on it.
    """
    environment["PYTHONPATH"] = python_path(environment.get("PYTHONPATH"))
    for name, value in ALWAYS.items():
        environment.setdefault(name, value)
    tunables.choose_for_processes(environment)
    is_wanted = environment.get(tunables.HA_PROXY, "1") == "1"
    reason = tunables.choose_proxy(environment)
    if reason is None:
        leftovers.remove_node_folders()
        environment[leftovers.NODE] = leftovers.node_folder()
        tunables.wrap(environment, environment[leftovers.NODE])
        if token := door_token(environment):
            environment[door.TOKEN] = token
    elif is_wanted:
        raise OSError(reason)


def door_token(environment: Mapping[str, str]) -> str | None:
    """Return the token of this cluster's HAProxys and fronts. All machines derive it from Ray's own.

    None if there is none: fronts then answer whoever reaches them.
    """
    secret = _rays_token(environment) if environment.get(AUTH_MODE) == "token" else ""
    return hmac.new(secret.encode(), PURPOSE, hashlib.sha256).hexdigest() if secret else None


def _rays_token(environment: Mapping[str, str]) -> str:
    """Ray's token, in Ray's order of places; "" if there is none: `ray start` then says so."""
    if given := environment.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
