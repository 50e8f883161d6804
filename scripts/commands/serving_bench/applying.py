"""A choice put into effect: in a running TorchServe, or in an archive."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from torchserve import Client, ServerError

from serving_bench.archives import CONFIG
from serving_bench.deployment import LOAD_TIMEOUT_S, said
from serving_bench.tuning import Choice


def keys_of(choice: Choice) -> dict[str, int]:
    """As model-config.yaml calls them."""
    return {
        "minWorkers": choice.workers,
        "maxWorkers": choice.workers,
        "batchSize": choice.batch_size,
        "maxBatchDelay": choice.delay_ms,
    }


def write(mar: Path, choice: Choice) -> None:
    """Set the choice in the archive's model-config.yaml, and leave everything else as it is, comments too.

    Raises ValueError if the archive has no model-config.yaml.
    """
    partial = mar.with_name(f"{mar.name}.partial")
    with zipfile.ZipFile(mar) as old:
        if CONFIG not in old.namelist():
            raise ValueError(f"{mar} holds no {CONFIG}; use --apply, or package it anew")
        with zipfile.ZipFile(partial, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                new.writestr(item, changed(data.decode(), choice).encode() if item.filename == CONFIG else data)
    partial.replace(mar)


def changed(text: str, choice: Choice) -> str:
    """model-config.yaml's text with the choice in it."""
    for key, value in keys_of(choice).items():
        line = f"{key}: {value}"
        text, count = re.subn(rf"(?m)^{key}\s*:.*$", line, text)
        if not count:
            text = f"{line}\n{text}"
    return text


def apply(client: Client, model: str, choice: Choice) -> None:
    """Register the model anew with the choice: TorchServe cannot change batch size or delay of one that serves.

    Meanwhile requests for it get 404. Raises ServerError.
    """
    described = client.describe(model)
    answer = client.manage("DELETE", f"/models/{model}")
    if answer.status != 200:
        raise ServerError(f"{model} was not unregistered: {answer.status} {said(answer.json())}")
    query = {
        "url": described["modelUrl"],
        "model_name": model,
        "initial_workers": 0,
        "batch_size": choice.batch_size,
        "max_batch_delay": choice.delay_ms,
    }
    answer = client.manage("POST", "/models", query, timeout_s=LOAD_TIMEOUT_S)
    if answer.status != 200:
        raise ServerError(
            f"{model} is unregistered, and was not registered anew: {answer.status} {said(answer.json())}"
        )
    client.scale(model, choice.workers, LOAD_TIMEOUT_S)
    found = client.describe(model)
    if (found["batchSize"], found["maxBatchDelay"]) != (choice.batch_size, choice.delay_ms):
        raise ServerError(f"{model} serves with batch size {found['batchSize']}, delay {found['maxBatchDelay']} ms")
