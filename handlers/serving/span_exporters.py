"""Where spans go: the exporters that the environment names, and an end that waits for no collector for long."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import entry_points
from typing import Any

GROUP = "opentelemetry_traces_exporter"
# The first that is set holds. Source: opentelemetry.io/docs/specs/otel/protocol/exporter.
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
BY_PROTOCOL = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
GOODBYE_S = 2.0  # a worker whose GPU is lost has to end at once


def asked_for() -> list[str]:
    """Return the exporters' names in OTEL_TRACES_EXPORTER; none if OTEL_SDK_DISABLED turns all off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")]
    return [name for name in names if name not in ("", "none")]


def resolved(names: Sequence[str]) -> list[str]:
    """Return the names as installed packages have them. Raises LookupError, see name_of."""
    installed = {found.name for found in entry_points(group=GROUP)}
    return [name_of(name, installed) for name in names]


def name_of(name: str, installed: Collection[str]) -> str:
    """Return the exporter's name as its package has it: "otlp" stands for the exporter of a protocol.

    If no variable says which protocol, gRPC is taken if its exporter is installed, as OpenTelemetry for Python does.
    HTTP is taken if not.

    Args:
        name: from OTEL_TRACES_EXPORTER.
        installed: names of the exporters that installed packages have.

    Raises LookupError if no installed package has the exporter, or if the protocol is none of BY_PROTOCOL.
    """
    if name == "otlp":
        protocol = next((found for variable in PROTOCOLS if (found := os.environ.get(variable, "").strip())), "")
        protocol = protocol or ("grpc" if BY_PROTOCOL["grpc"] in installed else "http/protobuf")
        if protocol not in BY_PROTOCOL:
            raise LookupError(f"the OTLP protocol {protocol!r} has no exporter; wanted: {' or '.join(BY_PROTOCOL)}")
        name = BY_PROTOCOL[protocol]
    if name not in installed:
        package = f"opentelemetry-exporter-{name.replace('_', '-')}"
        raise LookupError(f"no installed package has the exporter {name!r}; pip install {package}")
    return name


def provider_of(names: Sequence[str]) -> Any:
    """Return an opentelemetry.sdk.trace.TracerProvider with these exporters; names: by `resolved`.

    Raises ImportError if the SDK is not installed, and whatever an exporter raises for its variables.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporters = [next(iter(entry_points(group=GROUP, name=name))).load()() for name in names]
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "torchserve"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def end_with_process(provider: Any) -> Callable[[], None]:
    """Return what sends the last spans and ends the provider, within GOODBYE_S; the end of the process calls it too.

    The SDK's own end waits for a collector that hangs for up to 30 s.
    """
    is_wanted = threading.Event()

    def work() -> None:
        is_wanted.wait()
        provider.shutdown()

    thread = threading.Thread(target=work, name="last spans", daemon=True)
    thread.start()  # now, because Python may start no thread any more when it ends

    def end() -> None:
        is_wanted.set()
        thread.join(GOODBYE_S)
        atexit.unregister(end)

    atexit.register(end)
    return end
