"""Write grafana/torchserve.json, the dashboard: scripts/deployment/dashboard.py [--check]

A panel is one line of ROWS: title, unit, and a query per curve with the curve's name. To add a panel, add a line and
run this. --check tells whether the file is up to date, and writes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TARGET = Path(__file__).resolve().parent / "grafana" / "torchserve.json"
COLUMNS, WIDTH, HEIGHT = 24, 8, 8


class Panel(NamedTuple):
    """title; Grafana's name of the unit; query -> the curve's name, with labels in {{}}."""

    title: str
    unit: str
    queries: dict[str, str]


# $instance and $model are the dashboard's variables.
HOST = 'instance=~"$instance"'
SHARED = 'instance=~"$instance", model_name=~"$model"'
MODEL = 'instance=~"$instance", ModelName=~"$model"'
NAME, HANDLER = "{{model_name}} {{instance}}", "{{ModelName}} {{instance}}"


def _quantile(share: float, metric: str, by: str = "") -> str:
    buckets = f"sum by (instance, ModelName, {by}le) (rate({metric}_bucket{{{MODEL}}}[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})"


def _mean(metric: str) -> str:
    return f"rate({metric}_sum{{{MODEL}}}[$__rate_interval]) / rate({metric}_count{{{MODEL}}}[$__rate_interval])"


ROWS: dict[str, list[Panel]] = {
    "What clients get": [
        Panel("Answers by kind", "reqps", {f"torchserve:requests:rate5m{{{HOST}}}": "{{kind}} {{instance}}"}),
        Panel("Requests by model", "reqps", {f"torchserve:model_requests:rate5m{{{SHARED}}}": NAME}),
        Panel("Mean latency", "s", {f"torchserve:latency_seconds:mean5m{{{SHARED}}}": NAME}),
        Panel("Mean time in the queue", "s", {f"torchserve:queue_seconds:mean5m{{{SHARED}}}": NAME}),
        Panel(
            "Time from the proxy to the handler: half of them, 99 % of them",
            "ms",
            {_quantile(0.5, "QueueTime"): f"50 % {HANDLER}", _quantile(0.99, "QueueTime"): f"99 % {HANDLER}"},
        ),
        Panel("Alerts", "none", {'ALERTS{alertstate="firing"}': "{{alertname}} {{instance}}"}),
        Panel("Server answers its metrics port", "none", {f'up{{job="torchserve", {HOST}}}': "{{instance}}"}),
    ],
    "Errors": [
        Panel("Refused by the model (4xx)", "reqps", {f"rate(RequestsRefused{{{MODEL}}}[5m])": HANDLER}),
        Panel("Failed in the model (5xx)", "reqps", {f"rate(RequestsFailed{{{MODEL}}}[5m])": HANDLER}),
        Panel(
            "Errors by type",
            "reqps",
            {f"torchserve:model_errors:rate5m{{{MODEL}}}": "{{Status}} {{Type}} {{ModelName}} {{instance}}"},
        ),
        Panel("Outputs that are NaN or infinite", "none", {f"NonFiniteOutputs{{{MODEL}}}": HANDLER}),
    ],
    "Batches": [
        Panel("Mean requests per batch", "none", {_mean("BatchSize"): HANDLER}),
        Panel("Mean inputs per batch", "none", {_mean("BatchInputs"): HANDLER}),
        Panel(
            "Time of a batch: half of them, 99 % of them",
            "ms",
            {_quantile(0.5, "BatchTime"): f"50 % {HANDLER}", _quantile(0.99, "BatchTime"): f"99 % {HANDLER}"},
        ),
        Panel(
            "Time of each step, 99 % of them",
            "ms",
            {_quantile(0.99, "StepTime", "Step, "): f"{{{{Step}}}} {HANDLER}"},
        ),
        Panel("Tokens that are padding", "percentunit", {f"torchserve:padding:share5m{{{MODEL}}}": HANDLER}),
    ],
    "Workers": [
        Panel(
            "Engine, precision and device of each worker",
            "none",
            {
                f"torchserve:worker:info{{{MODEL}}}": (
                    "{{WorkerName}} {{Engine}} {{Precision}} {{Device}} {{instance}}"
                )
            },
        ),
        Panel(
            "Memory of each worker",
            "bytes",
            {f"torchserve:worker_memory:bytes{{{MODEL}}}": "{{WorkerName}} {{instance}}"},
        ),
        Panel(
            "GPU memory that PyTorch holds",
            "bytes",
            {f"torchserve:worker_gpu_memory:bytes{{{MODEL}}}": "{{WorkerName}} {{Device}} {{instance}}"},
        ),
    ],
    "Machine": [
        Panel("Time to load a worker", "ms", {f"WorkerLoadTime{{{HOST}}}": "{{WorkerName}} {{instance}}"}),
        Panel(
            "CPU, memory and disk in use",
            "percent",
            {
                f"CPUUtilization{{{HOST}}}": "CPU {{instance}}",
                f"MemoryUtilization{{{HOST}}}": "memory {{instance}}",
                f"DiskUtilization{{{HOST}}}": "disk {{instance}}",
            },
        ),
        Panel(
            "GPUs and their memory in use",
            "percent",
            {
                f"GPUUtilization{{{HOST}}}": "GPU {{DeviceId}} {{instance}}",
                f"GPUMemoryUtilization{{{HOST}}}": "memory {{DeviceId}} {{instance}}",
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "TorchServe",
        "uid": "torchserve-fast-handlers",
        "schemaVersion": 39,
        "tags": ["torchserve"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_source(), _variable("instance", "up", "instance"), _models()]},
        "panels": list(_panels()),
    }


def queries() -> list[str]:
    """All queries of all panels."""
    return [query for panels in ROWS.values() for panel in panels for query in panel.queries]


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        for place, panel in enumerate(panels):
            number += 1
            x = place * WIDTH % COLUMNS
            yield _panel(number, panel, {"x": x, "y": y, "w": WIDTH, "h": HEIGHT})
            y += HEIGHT if x + WIDTH == COLUMNS or place == len(panels) - 1 else 0


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": query, "legendFormat": name, "datasource": _DATASOURCE}
        for index, (query, name) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


_DATASOURCE = {"type": "prometheus", "uid": "${source}"}


def _source() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(name: str, metric: str, label: str) -> dict[str, Any]:
    query = f'label_values({metric}{{job="torchserve"}}, {label})'
    return {
        "name": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def _models() -> dict[str, Any]:
    return _variable("model", "ts_inference_requests_total", "model_name")


def main() -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if sys.argv[1:] == ["--check"]:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is not up to date: run scripts/deployment/dashboard.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
