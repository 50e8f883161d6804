"""KServe's model server over archives, as scripts/serve-kserve starts it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.ports import free_ports

from tests.e2e import host_process
from tests.hosts_table import MODELS, Asked, Reply


@dataclass(frozen=True)
class KServe:
    """A running server. url: its address. log: what it prints."""

    url: str
    log: Path

    def ask(self, asked: Asked) -> Reply:
        """Return what a client gets who sends this request."""
        return host_process.ask(self.url, asked)


@contextlib.contextmanager
def kserve(store: Path, models: Sequence[str] = MODELS, options: Sequence[str] = ()) -> Iterator[KServe]:
    """Serve archives of a folder. Skips the test if KServe cannot be installed."""
    python = host_process.environment("kserve")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    files = [str(store / f"{name}.mar") for name in models]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [str(python), "-m", "kserve_host.server", "--http_port", str(port), *options, *files]
        with host_process.running(command, f"{url}/v2/models/{models[0]}/ready", log):
            yield KServe(url, log)
