"""config.properties: read it, and write one with other ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from server import ports
from server.paths import CONFIG, ROOT

ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")
HIGHEST_PORT = 65535


def read_properties(path: Path) -> dict[str, str]:
    """The keys and values of a .properties file, as TorchServe reads it."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def config_on_free_ports(path: Path, settings: Mapping[str, str] | None = None) -> Path:
    """Write the project's config.properties to `path` with free ports, absolute paths, and `settings` of your own."""
    changes = {
        **free_addresses(1)[0],
        "metrics_config": str(ROOT / read_properties(CONFIG)["metrics_config"]),
        **(settings or {}),
    }
    return write_changed(CONFIG, path, changes)


def free_addresses(servers: int) -> list[dict[str, str]]:
    """The settings that give each of several servers free ports of its own."""
    free = iter(ports.free_ports(servers * (len(ADDRESSES) + len(GRPC_PORTS))))
    return [
        {**{key: _address(next(free)) for key in ADDRESSES}, **{key: str(next(free)) for key in GRPC_PORTS}}
        for _ in range(servers)
    ]


def config_on_port(source: Path, path: Path, port: int) -> Path:
    """Write `source` to `path` with the inference API on `port`, so that a second server fits beside the first.

    Management follows on port + 1 and metrics on port + 2. gRPC stays where `source` has it. Each of these four moves
    to a free port if its own is taken. `port` itself is not checked here.
    """
    properties = read_properties(source)
    wanted = {
        "management_address": port + 1,
        "metrics_address": port + 2,
        "grpc_inference_port": int(properties.get("grpc_inference_port", 7070)),
        "grpc_management_port": int(properties.get("grpc_management_port", 7071)),
    }
    chosen = dict(zip(wanted, _free_or_other(list(wanted.values()), port), strict=True))
    changes = {key: str(value) if key in GRPC_PORTS else _address(value) for key, value in chosen.items()}
    return write_changed(source, path, {"inference_address": _address(port), **changes})


def _free_or_other(wanted: list[int], taken: int) -> Iterator[int]:
    """Each wanted port, or a free one in its place; no port twice, and never `taken`."""
    spare = iter(port for port in ports.free_ports(2 * len(wanted) + 1) if port not in (*wanted, taken))
    for port in wanted:
        usable = port <= HIGHEST_PORT and port != taken and ports.why_taken(ports.HOST, port) is None
        yield port if usable else next(spare)


def write_changed(source: Path, path: Path, changes: Mapping[str, str]) -> Path:
    """Write `source` to `path` with other values for the keys of `changes`; new keys come last. Returns `path`."""
    left = dict(changes)
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        key = line.partition("=")[0].strip()
        lines.append(f"{key}={left.pop(key)}" if key in left else line)
    lines += [f"{key}={value}" for key, value in left.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _address(port: int) -> str:
    return f"http://{ports.HOST}:{port}"
