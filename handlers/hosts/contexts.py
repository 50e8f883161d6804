"""What handlers want of TorchServe's context, without TorchServe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from handlers.hosts.messages import HttpResponse


class Metric(Protocol):
    """A counter or gauge of a host."""

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        """Add to a counter, or set a gauge. dimension_values: as handlers/metrics.yaml names them, in that order."""


class Metrics(Protocol):
    """Where a host wants the figures of batches; handlers/metrics.yaml says what each one means."""

    def metric(self, name: str, kind: str) -> Metric | None:
        """Return the metric of this name; None if the host wants none. kind: "COUNTER" or "GAUGE"."""


class HostContext:
    """A handler's context, for loading and for one batch after the other.

    Args:
        folder: of the unpacked archive.
        name: under which the model is served.
        manifest: the archiver's.
        config: the content of model-config.yaml, with what the caller has changed.
        gpu: index of the model's GPU; None for a model on the CPU.
        metrics: gets the figures of batches; None drops them.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        manifest: dict[str, Any],
        config: dict[str, Any],
        gpu: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.model_name, self.model_yaml_config, self.metrics = name, config, metrics
        self.manifest: dict[str, Any] | None = manifest
        batch_size = int(config.get("batchSize") or 1)
        self.system_properties: dict[str, Any] = {
            "model_dir": str(folder),
            "gpu_id": gpu,
            "batch_size": batch_size,
            "host": "the host",
        }
        self.request_ids: dict[int, str] = {}
        self.begin(())

    def begin(self, sent: Sequence[Mapping[str, Any]]) -> None:
        """Begin a batch. sent: the headers of each of its rows."""
        self.sent = sent
        self.statuses: dict[int, int] = {}
        self.headers: list[dict[str, str]] = [{} for _ in sent]

    def responses(self, bodies: Sequence[bytes]) -> list[HttpResponse]:
        """Return the batch's responses. bodies: one per row, in order."""
        return [HttpResponse(self.statuses[i], self.headers[i], body) for i, body in enumerate(bodies)]

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return dict(self.sent[idx])

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.headers[idx]["content-type"] = value

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.headers[idx][key.lower()] = value
