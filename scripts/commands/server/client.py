"""Requests to a running TorchServe, and its management."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from server import tokens
from server.errors import ServerError
from server.http import TIMEOUT_S, Answer, request
from server.logs import load_errors, model_log, read_from

POLL_S = 0.3
Report = Callable[[str], None]


def silent(line: str) -> None:
    """A Report that drops its lines."""


@dataclass(frozen=True)
class Client:
    """A running TorchServe, with the tokens of its key file. All methods raise OSError if nobody answers.

    folder: where torchserve was started. config: the content of its config.properties.
    """

    folder: Path
    config: Mapping[str, str]

    @property
    def inference(self) -> str:
        """The address of the inference API, http://HOST:PORT."""
        return self.config["inference_address"]

    @property
    def management(self) -> str:
        """The address of the management API."""
        return self.config["management_address"]

    @property
    def log(self) -> Path:
        """The log of all workers."""
        return model_log(self.folder)

    def token(self, kind: str) -> str:
        """A valid token of kind "inference" or "management". Raises ServerError."""
        return tokens.valid_token(self.folder, self.management, kind)

    def predict(
        self, model: str, body: bytes, content_type: str = "", path: str = "", timeout_s: float = TIMEOUT_S
    ) -> Answer:
        """POST `body` to /predictions/MODEL followed by `path` (a version, or a query)."""
        headers = tokens.bearer(self.token("inference")) | ({"Content-Type": content_type} if content_type else {})
        return request("POST", f"{self.inference}/predictions/{model}{path}", body, headers, timeout_s)

    def manage(
        self, method: str, path: str, query: Mapping[str, object] | None = None, timeout_s: float = TIMEOUT_S
    ) -> Answer:
        """Call the management API: manage("PUT", "/models/resnet101", {"min_worker": 2})."""
        url = f"{self.management}{path}{'?' + urlencode(query) if query else ''}"
        return request(method, url, headers=tokens.bearer(self.token("management")), timeout_s=timeout_s)

    def models(self, timeout_s: float = TIMEOUT_S) -> list[str]:
        """The names of all registered models. Raises ServerError."""
        names, page = list[str](), "0"
        while page:
            answer = self.manage("GET", "/models", {"limit": 100, "next_page_token": page}, timeout_s)
            if answer.status != 200:
                raise ServerError(f"the models could not be listed: {refusal(answer)}")
            content = answer.json()
            names += [model["modelName"] for model in content["models"]]
            page = content.get("nextPageToken")
        return names

    def describe(self, model: str, version: str = "", timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """TorchServe's description of a model: workers, batching. Raises ServerError if it has none."""
        return self._described(f"/models/{model}{'/' + version if version else ''}", {}, timeout_s)

    def customized(self, model: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The handler's own description: kind, engine, precision, device. A worker gives it. Raises ServerError."""
        described = self._described(f"/models/{model}", {"customized": "true"}, timeout_s)
        metadata: dict[str, Any] = described["customizedMetadata"]
        return metadata

    def _described(self, path: str, query: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        answer = self.manage("GET", path, query, timeout_s)
        if answer.status != 200:
            raise ServerError(f"{path}: {refusal(answer)}")
        description: dict[str, Any] = answer.json()[0]
        return description

    def scale(self, model: str, workers: int, timeout_s: float = 600, report: Report = silent) -> None:
        """Have exactly `workers` workers serve `model`, and wait until they are ready.

        Raises ServerError if TorchServe refuses, if a worker cannot load the model, or after `timeout_s`.
        """
        before = len(self.describe(model)["workers"])
        known_bytes = self.log.stat().st_size if self.log.is_file() else 0
        answer = self.manage("PUT", f"/models/{model}", {"min_worker": workers, "max_worker": workers})
        if answer.status not in (200, 202):
            raise ServerError(f"scaling {model} was refused: {refusal(answer)}")
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if errors := load_errors(read_from(self.log, known_bytes), model):
                raise ServerError(f"a worker of {model} cannot load: {errors[-1]} (all of it: {self.log})")
            states = [worker["status"] for worker in self.describe(model)["workers"]]
            report(f"{model}: {states.count('READY')} of {workers} workers ready (was {before})")
            if states == ["READY"] * workers:
                return
            time.sleep(POLL_S)
        raise ServerError(
            f"{model} did not reach {workers} ready workers in {timeout_s:.0f} s{self.last_error(model)}"
        )

    def last_error(self, model: str) -> str:
        """Why a worker of `model` last failed to load, and the log, to put behind a message."""
        errors = load_errors(read_from(self.log, 0), model)
        why = f"; a worker could not load: {errors[-1]}" if errors else ""
        return f"{why} (log: {self.log})"

    def metrics(self) -> str:
        """The Prometheus text of the metrics port."""
        return request("GET", f"{self.config['metrics_address']}/metrics").body.decode()


def refusal(answer: Answer) -> str:
    """Status and message of one of TorchServe's errors, for a person."""
    try:
        content = answer.json()
    except ValueError:  # another server answers at that address
        return f"{answer.status}, without TorchServe's message"
    message = content.get("message", "") if isinstance(content, dict) else ""
    return f"{answer.status} {message}".strip()
