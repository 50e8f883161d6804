"""Put a choice of scripts/tune into effect: in an archive, or in a running TorchServe."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from server.client import Client, refusal
from server.errors import ServerError

from serving_bench.archives import CONFIG
from serving_bench.search import Choice
from serving_bench.temporary_server import LOAD_TIMEOUT_S


def keys_of(choice: Choice) -> dict[str, int]:
    """The keys of model-config.yaml, with the choice's values."""
    return {
        "minWorkers": choice.workers,
        "maxWorkers": choice.workers,
        "batchSize": choice.batch_size,
        "maxBatchDelay": choice.delay_ms,
    }


def check_writable(mar: Path) -> None:
    """Raise ValueError if the archive has no model-config.yaml."""
    with zipfile.ZipFile(mar) as archive:
        if CONFIG not in archive.namelist():
            raise ValueError(f"{mar} holds no {CONFIG}; use --apply, or package it again")


def write(mar: Path, choice: Choice) -> None:
    """Write the choice into the archive's model-config.yaml. All else stays, comments too.

    Raises ValueError if the archive has no model-config.yaml.
    """
    check_writable(mar)
    partial = mar.with_name(f"{mar.name}.partial")
    with zipfile.ZipFile(mar) as old:
        try:
            _copy(old, partial, choice)
            partial.replace(mar)
        finally:
            partial.unlink(missing_ok=True)  # it is there only if something went wrong, such as a full disk


def _copy(old: zipfile.ZipFile, path: Path, choice: Choice) -> None:
    with zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item, changed(data.decode(), choice).encode() if item.filename == CONFIG else data)


def changed(text: str, choice: Choice) -> str:
    """The text of model-config.yaml with the choice in it."""
    for key, value in keys_of(choice).items():
        line = f"{key}: {value}"
        text, count = re.subn(rf"(?m)^{key}\s*:.*$", line, text)
        if not count:
            text = f"{line}\n{text}"
    return text


def apply(client: Client, model: str, choice: Choice) -> None:
    """Register the model again with the choice: TorchServe cannot change batch size or delay of a registered model.

    Requests get 404 meanwhile. If it does not load so, or if the program is stopped meanwhile, it is registered as it
    was. Raises ServerError.
    """
    described = client.describe(model)
    try:
        _register(client, model, described["modelUrl"], choice)
    except (ServerError, KeyboardInterrupt) as error:
        before = Choice(len(described["workers"]), described["batchSize"], described["maxBatchDelay"])
        try:
            _register(client, model, described["modelUrl"], before)
        except ServerError as again:
            why = str(error) or "stopped"
            raise ServerError(f"{why}; as it was, it does not load either: {again}") from error
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ServerError(f"{error}; {model} serves as before") from error


def _register(client: Client, model: str, url: str, choice: Choice) -> None:
    """Unregister the model, and register it with the choice. Raises ServerError."""
    answer = client.manage("DELETE", f"/models/{model}")
    if answer.status not in (200, 404):
        raise ServerError(f"{model} was not unregistered: {refusal(answer)}")
    query = {
        "url": url,
        "initial_workers": 0,
        "batch_size": choice.batch_size,
        "max_batch_delay": choice.delay_ms,
    }
    client.register(model, query, LOAD_TIMEOUT_S)
    client.scale(model, choice.workers, LOAD_TIMEOUT_S)
    found = client.describe(model)
    if (found["batchSize"], found["maxBatchDelay"]) != (choice.batch_size, choice.delay_ms):
        raise ServerError(f"{model} serves with batch size {found['batchSize']}, delay {found['maxBatchDelay']} ms")
