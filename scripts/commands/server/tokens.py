"""The tokens that TorchServe wants: read from key_file.json, and renewed when they expire."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from server.errors import ServerError
from server.http import TIMEOUT_S, request

KEY_FILE = "key_file.json"
RENEW_BEFORE = datetime.timedelta(minutes=1)


def valid_token(folder: Path, management_address: str, kind: str, timeout_s: float = TIMEOUT_S) -> str:
    """A token that is valid for a minute at least.

    Args:
        folder: where torchserve was started; it holds key_file.json.
        management_address: where an expired token is renewed, http://HOST:PORT.
        kind: "inference" or "management".
        timeout_s: how long the renewal is waited for.

    Raises:
        ServerError: there is no key file, or TorchServe does not renew the token.
        OSError: nobody answers at management_address.
    """
    keys = read_keys(folder)
    expires = datetime.datetime.fromisoformat(_whole_seconds(keys[kind]["expiration time"]))
    if expires - datetime.datetime.now(datetime.timezone.utc) < RENEW_BEFORE:
        url = f"{management_address}/token?type={kind}"
        answer = request("GET", url, headers=bearer(keys["API"]["key"]), timeout_s=timeout_s)
        if answer.status != 200:
            raise ServerError(f"the {kind} token could not be renewed: {answer.status} {answer.body!r}")
        keys = read_keys(folder)
    return str(keys[kind]["key"])


def read_keys(folder: Path) -> dict[str, Any]:
    """The content of key_file.json. Raises ServerError."""
    path = folder / KEY_FILE
    try:
        keys: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ServerError(
            f"there is no {path}. TorchServe writes it at its start, into the folder it is started in. If none runs, "
            "start one: scripts/serve. If it runs in another folder, give that one with --folder"
        ) from None
    except ValueError:  # read while TorchServe writes it
        raise ServerError(f"{path} is being written; try again") from None
    return keys


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def _whole_seconds(moment: str) -> str:
    """Java's time without its nanoseconds and its Z, because Python 3.10 reads neither."""
    return re.sub(r"\.\d+", "", moment).replace("Z", "+00:00")
