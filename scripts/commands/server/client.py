"""Requests to a running TorchServe, and its management."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from server import tokens
from server.errors import NotReadyError, ServerError
from server.http import TIMEOUT_S, Answer, request
from server.logs import GRACE_S, Logs

POLL_S = 0.3
Report = Callable[[str], None]


def silent(line: str) -> None:
    """A Report that drops its lines."""


@dataclass(frozen=True)
class Client:
    """A running TorchServe, with the tokens of its key file. All methods raise OSError if nobody answers.

    folder: where torchserve was started. config: the content of its config.properties. timeout_s: how long an answer
    is waited for, unless a method is given another time.
    """

    folder: Path
    config: Mapping[str, str]
    timeout_s: float = TIMEOUT_S

    @property
    def inference(self) -> str:
        """The address of the inference API, http://HOST:PORT."""
        return self.config["inference_address"]

    @property
    def management(self) -> str:
        """The address of the management API."""
        return self.config["management_address"]

    def token(self, kind: str) -> str:
        """A valid token of kind "inference" or "management". Raises ServerError."""
        return tokens.valid_token(self.folder, self.management, kind, self.timeout_s)

    def predict(
        self, model: str, body: bytes, content_type: str = "", path: str = "", timeout_s: float | None = None
    ) -> Answer:
        """POST `body` to /predictions/MODEL followed by `path` (a version, or a query)."""
        headers = tokens.bearer(self.token("inference")) | ({"Content-Type": content_type} if content_type else {})
        return request(
            "POST", f"{self.inference}/predictions/{model}{path}", body, headers, timeout_s or self.timeout_s
        )

    def manage(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Call the management API: manage("PUT", "/models/resnet101", {"min_worker": 2})."""
        url = f"{self.management}{path}{'?' + urlencode(query) if query else ''}"
        sent = {**(headers or {}), **tokens.bearer(self.token("management"))}
        return request(method, url, headers=sent, timeout_s=timeout_s or self.timeout_s)

    def models(self) -> list[str]:
        """The names of all registered models. Raises ServerError."""
        names, page = list[str](), "0"
        while page:
            answer = self.manage("GET", "/models", {"limit": 100, "next_page_token": page})
            if answer.status != 200:
                raise ServerError(f"the models could not be listed: {refusal(answer)}")
            content = answer.json()
            names += [model["modelName"] for model in content["models"]]
            page = content.get("nextPageToken")
        return names

    def describe(self, model: str, version: str = "") -> dict[str, Any]:
        """TorchServe's description of a model: workers, batching. Raises ServerError if it has none."""
        return self._described(f"/models/{model}{'/' + version if version else ''}", {})

    def customized(
        self, model: str, version: str = "", headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The handler's own description: kind, engine, precision, device. A worker gives it. Raises ServerError."""
        path = f"/models/{model}{'/' + version if version else ''}"
        described = self._described(path, {"customized": "true"}, timeout_s, headers)
        metadata: dict[str, Any] = described["customizedMetadata"]
        return metadata

    def _described(
        self,
        path: str,
        query: Mapping[str, object],
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        answer = self.manage("GET", path, query, timeout_s, headers)
        if answer.status != 200:
            there = f"; registered models: {', '.join(self.models()) or 'none'}" if answer.status == 404 else ""
            raise ServerError(f"{path}: {refusal(answer)}{there}")
        description: dict[str, Any] = answer.json()[0]
        return description

    def register(self, model: str, query: Mapping[str, object], timeout_s: float | None = None) -> None:
        """Register an archive as `model`. query: "url", the archive's name in the model store, and further options.

        Raises ServerError, with the reason if the model's first worker cannot load it.
        """
        logs = Logs(self.folder)
        answer = self.manage("POST", "/models", {**query, "model_name": model}, timeout_s)
        if answer.status in (200, 202):  # 202: its workers load meanwhile
            return
        error = _wait_for_error(logs, model) if "start workers" in refusal(answer) else None
        why = f": {error} (all of it: {logs.workers})" if error else ""
        raise ServerError(f"{model} was not registered: {refusal(answer)}{why}")

    def scale(
        self,
        model: str,
        workers: int,
        timeout_s: float = 600,
        report: Report = silent,
        version: str = "",
        limit_s: float | None = None,
    ) -> None:
        """Have exactly `workers` workers serve `model`, and wait until they are ready.

        Fewer workers than before: the others end at once, and the requests that they have fail. updates/scaling.py
        loses none. If all workers have failed before, they are started again at once. TorchServe itself waits longer
        from try to try, and gives up after some minutes. Workers that are still loading are waited for.
        limit_s: the time limit that the message names, if more than this was done in it.

        Raises ServerError if TorchServe refuses, and NotReadyError if a worker cannot load the model or after
        `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        logs = Logs(self.folder)
        before = self.describe(model, version)["workers"]
        if before and {worker["id"] for worker in before} <= logs.stopped(model):
            self.set_workers(model, 0, version)
            while self.describe(model, version)["workers"] and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self.set_workers(model, workers, version)
        while True:
            if error := logs.load_error(model):
                raise NotReadyError(f"a worker of {model} cannot load: {error} (all of it: {logs.workers})")
            states = [worker["status"] for worker in self.describe(model, version)["workers"]]
            report(f"{model}: {states.count('READY')} of {workers} workers ready (was {len(before)})")
            if states == ["READY"] * workers:
                return
            if time.monotonic() >= deadline:
                break
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
        limit = round(timeout_s if limit_s is None else limit_s, 2)
        raise NotReadyError(f"{model} did not reach {workers} ready workers in {limit:g} s (log: {logs.workers})")

    def set_workers(self, model: str, workers: int, version: str = "") -> None:
        """Ask for `workers` workers, and wait for none of them. Raises ServerError if that is refused."""
        path = f"/models/{model}{'/' + version if version else ''}"
        answer = self.manage("PUT", path, {"min_worker": workers, "max_worker": workers})
        if answer.status not in (200, 202):
            raise ServerError(f"scaling {model} was refused: {refusal(answer)}")

    def metrics(self) -> str:
        """The Prometheus text of the metrics port."""
        return request("GET", f"{self.config['metrics_address']}/metrics").body.decode()


def _wait_for_error(logs: Logs, model: str) -> str | None:
    """Why a worker has just failed to load; TorchServe writes its logs a little later than it answers."""
    deadline = time.monotonic() + GRACE_S + 3 * POLL_S
    while time.monotonic() < deadline:
        if error := logs.load_error(model):
            return error
        time.sleep(POLL_S)
    return None


def refusal(answer: Answer) -> str:
    """Status and message of one of TorchServe's errors, for a person."""
    try:
        content = answer.json()
    except ValueError:  # another server answers at that address
        return f"{answer.status}, without TorchServe's message"
    message = content.get("message", "") if isinstance(content, dict) else ""
    return f"{answer.status} {message}".strip()
