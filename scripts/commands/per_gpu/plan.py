"""What each TorchServe gets: its GPUs, its ports, its folder, its environment. Nothing is started here."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.addresses import obstacle
from server.gpus import BY_BUS, DEVICES
from server.ports import HOST

STEP = 10  # from a server's first port to the next server's: room for names() and a number that is easy to remember
HIGHEST_PORT = 65535
LENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
# How long tokens live: they do not leave this machine, and nobody renews them.
TEN_YEARS_MINUTES = "5256000"
# It names a port, which only one server can have.
NOT_PASSED_ON = ("METRICS_ADDRESS",)


@dataclass(frozen=True)
class Plan:
    """One TorchServe of several.

    devices: its GPUs, as CUDA_VISIBLE_DEVICES names them; None: nothing is said of GPUs. first_port: the first of its
    ports. folder: holds all that belongs to it. metrics_host: the address on which its metrics port listens.
    """

    index: int
    devices: tuple[str, ...] | None
    first_port: int
    folder: Path
    metrics_host: str = HOST

    @property
    def run_folder(self) -> Path:
        """Where TorchServe runs; it gets key_file.json and logs/."""
        return self.folder / "torchserve"

    @property
    def ports(self) -> dict[str, int]:
        """All ports by what listens there. "rest" and "grpc" are those of the nginx that adds the token."""
        names = ("inference", "management", "metrics", "grpc_inference", "grpc_management", "rest", "grpc")
        return {name: self.first_port + offset for offset, name in enumerate(names)}

    def settings(self) -> dict[str, str]:
        """For config.properties. TorchServe counts GPUs by nvidia-smi, which ignores CUDA_VISIBLE_DEVICES."""
        hosts = {"inference": HOST, "management": HOST, "metrics": self.metrics_host}
        return {
            **{f"{name}_address": f"http://{host}:{self.ports[name]}" for name, host in hosts.items()},
            **{f"{name}_address": HOST for name in ("grpc_inference", "grpc_management")},
            **{f"{name}_port": str(self.ports[name]) for name in ("grpc_inference", "grpc_management")},
            **({} if self.devices is None else {"number_of_gpu": str(len(self.devices))}),
        }

    def environment(self, around: Mapping[str, str], model_store: Path, stop_s: float) -> dict[str, str]:
        """Of scripts/deployment/start, which lists these variables. around: this process's own environment."""
        gpus = {} if self.devices is None else {DEVICES: ",".join(self.devices), **BY_BUS}
        return {
            "TOKEN_MINUTES": TEN_YEARS_MINUTES,
            **{name: value for name, value in around.items() if name not in NOT_PASSED_ON},
            **gpus,
            "RUN_FOLDER": str(self.run_folder),
            "MODEL_STORE": str(model_store),
            "TS_CONFIG": str(self.folder / "config.properties"),
            "STOP_SECONDS": f"{stop_s:g}",
        }

    def __str__(self) -> str:
        gpus = "" if self.devices is None else f" (GPU {', '.join(self.devices)})"
        return f"server {self.index}{gpus}"


def plans(
    devices: Sequence[str], servers: int | None, first_port: int, folder: Path, metrics_host: str = HOST
) -> list[Plan]:
    """One server per GPU, or `servers`, which have as many GPUs each.

    devices: the GPUs of this machine that may be used. Raises ValueError if they cannot be divided, or without GPUs
    if no number of servers is given, or for ports that do not exist.
    """
    count = servers or len(devices)
    if not count:
        raise ValueError("this process sees no GPU; --servers N starts N servers without GPUs")
    if devices and len(devices) % count:
        raise ValueError(f"{len(devices)} GPUs cannot be divided evenly between {count} servers")
    if not 1 <= first_port <= HIGHEST_PORT + 1 - STEP * count:
        raise ValueError(
            f"{count} servers need {STEP * count} ports from {first_port} on; the last is {HIGHEST_PORT}"
        )
    each = len(devices) // count
    shares = [tuple(devices[index * each : (index + 1) * each]) or None for index in range(count)]
    return [
        Plan(index, share, first_port + STEP * index, folder / f"server-{index}", metrics_host)
        for index, share in enumerate(shares)
    ]


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi names.

    CUDA ignores what follows a device that does not exist, such as -1, and so does this.
    """
    named = environment.get(DEVICES)
    if named is None:
        return [str(index) for index in range(_count())]
    words = [word.strip() for word in named.split(",")]
    last = next((index for index, word in enumerate(words) if not word or word.startswith("-")), len(words))
    return words[:last]


def _count() -> int:
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in found.splitlines())


def lent(found: Sequence[Plan], ports: str) -> str | None:
    """What to tell if a server's port is among those that Linux lends to connections; None if none is.

    ports: the content of LENT_PORTS. A server that is started again may find its port in use there.
    """
    lowest, highest = (int(word) for word in ports.split())
    if not any(lowest <= at <= highest for plan in found for at in plan.ports.values()):
        return None
    return (
        f"note: Linux lends the ports {lowest} to {highest} to connections, and servers have some of them. A server "
        "that is started again may find its port taken. Choose a lower --first-port"
    )


def check_ports(found: Sequence[Plan], host: str, port: int) -> None:
    """Raises ValueError if a port is named twice, or if somebody listens there. host, port: those of the clients."""
    wanted = [(name, member.metrics_host if name == "metrics" else HOST, at) for member in found
              for name, at in member.ports.items()]  # fmt: skip
    if any(at == port for _, _, at in wanted):
        raise ValueError(f"port {port} is for clients, and a server's too; choose another --port or --first-port")
    for name, address, at in [("clients", host, port), *wanted]:
        if blocked := obstacle(address, at):
            host_option = "--host" if name == "clients" else "--metrics-host"
            way = blocked.told("choose another --port or --first-port", f"choose another {host_option}")
            raise ValueError(f"{name}: {way}")
